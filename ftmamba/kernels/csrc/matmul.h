/* Small matrix products: a tile of TILE_ROWS x TILE_VECTORS registers, over packed weights.
 *
 * Written here because the products of one block of tokens follow one another in the second-level
 * cache; a library's calls would go through memory.
 */
#pragma once

#include "simd.h"

#if defined(HAS_AVX512)
#define TILE_ROWS 6
#define TILE_VECTORS 4
#else
#define TILE_ROWS 6
#define TILE_VECTORS 2
#endif
#define PANEL (TILE_VECTORS * WIDTH)

/* The right factor, (depth, columns): `stride` floats between rows; `panel_step` floats from one
 * panel of PANEL columns to the next. */
typedef struct {
    const float *values;
    size_t columns, stride, panel_step;
    int packed;
} Right;

/* The left factor, element (i, k) at values[i * row + k * depth]. */
typedef struct {
    const float *values;
    ptrdiff_t row, depth;
} Left;

INLINE Right rows_of(const float *values, size_t columns, size_t stride) {
    return (Right){values, columns, stride, PANEL, 0};
}

static size_t packed_size(size_t depth, size_t columns) { return depth * padded(columns); }

/* Write `columns` columns of the right factor, panel after panel; column j, row k is
 * from[k * row + j * column]. Columns up to a multiple of WIDTH are zero. */
static Right pack(float *to, const float *from, size_t depth, size_t columns, size_t row,
                  size_t column) {
    size_t width = padded(columns);
    float *at = to;
    for (size_t first = 0; first < width; first += PANEL) {
        size_t panel = width - first < PANEL ? width - first : PANEL;
        size_t full = columns > first ? columns - first : 0;
        if (full > panel) full = panel;
        for (size_t k = 0; k < depth; k++, at += panel) {
            const float *source = from + k * row + first * column;
            for (size_t j = 0; j < full; j++) at[j] = source[j * column];
            for (size_t j = full; j < panel; j++) at[j] = 0;
        }
    }
    return (Right){to, width, 0, depth * PANEL, 1};
}

/* c (rows, vectors * WIDTH) (+)= a b for constant rows and vectors, so that the sums stay in
 * registers. They start at zero also where c is added to: a long sum of sums is more exact. */
INLINE void tile(const int rows, const int vectors, size_t depth, Left a, const float *b,
                 size_t b_stride, float *c, size_t c_stride, const int add) {
    vec sum[TILE_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = splat(0);
    }
    for (size_t k = 0; k < depth; k++) {
        vec right[TILE_VECTORS];
        UNROLL for (int j = 0; j < vectors; j++) right[j] = load(b + j * WIDTH);
        UNROLL for (int i = 0; i < rows; i++) {
            vec left = splat(a.values[i * a.row]);
            IN_REGISTER(left);
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] += left * right[j];
        }
        a.values += a.depth;
        b += b_stride;
    }
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < vectors; j++) {
            float *to = c + i * c_stride + j * WIDTH;
            store(to, add ? load(to) + sum[i][j] : sum[i][j]);
        }
    }
}

#define TILE_CASE(ROWS, VECTORS) \
    case ROWS: \
        if (add) tile(ROWS, VECTORS, depth, a, b, b_stride, c, c_stride, 1); \
        else tile(ROWS, VECTORS, depth, a, b, b_stride, c, c_stride, 0); \
        break;
#define PANEL_FUNCTION(VECTORS) \
    static void panel_of_##VECTORS(size_t rows, size_t depth, Left a, const float *b, \
                                   size_t b_stride, float *c, size_t c_stride, int add) { \
        while (rows) { \
            size_t now = rows < TILE_ROWS ? rows : TILE_ROWS; \
            switch (now) { \
                TILE_CASE(6, VECTORS) TILE_CASE(5, VECTORS) TILE_CASE(4, VECTORS) \
                TILE_CASE(3, VECTORS) TILE_CASE(2, VECTORS) TILE_CASE(1, VECTORS) \
            } \
            rows -= now; \
            a.values += (ptrdiff_t)now * a.row; \
            c += now * c_stride; \
        } \
    }
PANEL_FUNCTION(1)
PANEL_FUNCTION(2)
#if TILE_VECTORS == 4
PANEL_FUNCTION(3)
PANEL_FUNCTION(4)
#endif

/* c (rows, b.columns) = a b, or c += a b; c's rows hold b.columns up to a multiple of WIDTH. */
static void multiply(size_t rows, size_t depth, Left a, Right b, float *c, size_t c_stride,
                     int add) {
    size_t width = padded(b.columns);
    const float *values = b.values;
    for (size_t first = 0; first < width; first += PANEL, values += b.panel_step) {
        size_t panel = width - first < PANEL ? width - first : PANEL;
        size_t stride = b.packed ? panel : b.stride;
        float *to = c + first;
        switch (panel / WIDTH) {
            case 1: panel_of_1(rows, depth, a, values, stride, to, c_stride, add); break;
            case 2: panel_of_2(rows, depth, a, values, stride, to, c_stride, add); break;
#if TILE_VECTORS == 4
            case 3: panel_of_3(rows, depth, a, values, stride, to, c_stride, add); break;
            case 4: panel_of_4(rows, depth, a, values, stride, to, c_stride, add); break;
#endif
        }
    }
}
