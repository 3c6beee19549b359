/* Eight tiles of 16 rows of 64 bytes: those of AMX, or the same in plain C, which every machine runs
 * and which is slow. The tests run the code on tiles with both. */
#pragma once

#include "simd.h"

#if defined(EMULATED_TILES)
#define HAS_TILES 1

/* A row is 16 floats, or 16 pairs of bfloat16 numbers. */
typedef union {
    float sums[16][16];
    uint16_t pairs[16][16][2];
} EmulatedTile;

static _Thread_local EmulatedTile emulated_tiles[8];

INLINE void tile_zero(int tile) { memset(&emulated_tiles[tile], 0, sizeof(EmulatedTile)); }

INLINE void tile_load(int tile, const void *from, size_t stride) {
    for (int i = 0; i < 16; i++)
        memcpy(emulated_tiles[tile].sums[i], (const char *)from + i * stride, 64);
}

INLINE void tile_store(int tile, void *to, size_t stride) {
    for (int i = 0; i < 16; i++) memcpy((char *)to + i * stride, emulated_tiles[tile].sums[i], 64);
}

INLINE float from_half(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* sums += left right: what is summed over stands in the pairs of left's columns and right's rows. */
static void tile_multiply(int sums, int left, int right) {
    const EmulatedTile *a = &emulated_tiles[left], *b = &emulated_tiles[right];
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            for (int k = 0; k < 16; k++)
                for (int side = 0; side < 2; side++)
                    emulated_tiles[sums].sums[i][j] +=
                        from_half(a->pairs[i][k][side]) * from_half(b->pairs[k][j][side]);
}

typedef int TileShapes;
INLINE void take_tiles(TileShapes *before) { *before = 0; }
INLINE void give_back_tiles(const TileShapes *before) { (void)before; }

#elif defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define HAS_TILES 1
/* Macros: the instructions name a tile by a constant. */
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_multiply(sums, left, right) _tile_dpbf16ps(sums, left, right)

/* What `ldtilecfg` reads. */
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes_a_row[16];
    uint8_t rows[16];
} TileShapes;

/* All eight tiles whole; oneDNN's shapes, if it has set any, come back afterwards. */
static void take_tiles(TileShapes *before) {
    TileShapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.bytes_a_row[i] = 64, shapes.rows[i] = 16;
    _tile_storeconfig(before);
    _tile_loadconfig(&shapes);
}

static void give_back_tiles(const TileShapes *before) {
    if (before->palette) _tile_loadconfig(before);
    else _tile_release();
}
#endif
