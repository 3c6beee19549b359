/* How tokens are cut: rows into blocks that stay in the second-level cache, long rows into segments
 * of whole chunks; and the memory that a block works in. */
#pragma once

#include <stdlib.h>

#include "kernels.h"
#include "scan.h"

#define BLOCK_BYTES (384 * 1024)

typedef struct {
    size_t chunk;    /* tokens of a chunk; the last one of a row may be shorter */
    size_t n_chunks; /* of a row */
    size_t segment;  /* tokens of a segment; the whole row where it is short */
    size_t rows;     /* rows of a block; 1 where a row has several segments */
} Cut;

/* A team of `members` has that many caches. */
static Cut cut_rows(size_t length, size_t bytes_per_token, size_t members) {
    Cut cut;
    size_t chunks = (length + LONGEST_CHUNK - 1) / LONGEST_CHUNK;
    cut.chunk = (length + chunks - 1) / chunks;
    cut.n_chunks = (length + cut.chunk - 1) / cut.chunk;
    size_t tokens = BLOCK_BYTES * members / bytes_per_token;
    if (tokens < 2 * LONGEST_CHUNK) tokens = 2 * LONGEST_CHUNK;
    if (length <= tokens) {
        cut.segment = length;
        cut.rows = tokens / length;
    } else {
        cut.segment = tokens / cut.chunk * cut.chunk;
        cut.rows = 1;
    }
    return cut;
}

/* Tokens start .. start + tokens of rows first .. first + rows. */
typedef struct {
    size_t first, rows, start, tokens;
} Block;

/* The part of `total` things that one member of a team works on, in whole units. */
INLINE Lanes part_of(size_t total, size_t unit, Team team) {
    size_t units = (total + unit - 1) / unit;
    size_t first = units * team.index / team.count * unit;
    size_t end = units * (team.index + 1) / team.count * unit;
    return (Lanes){first < total ? first : total, end < total ? end : total};
}

INLINE size_t smaller_size(size_t a, size_t b) { return a < b ? a : b; }

/* Memory handed out piece by piece from one allocation. Measure first with `from` NULL. */
typedef struct {
    char *from;
    size_t used;
} Arena;

static float *take(Arena *arena, size_t count) {
    float *piece = arena->from ? (float *)(arena->from + arena->used) : NULL;
    arena->used += (count * sizeof(float) + ALIGNED - 1) / ALIGNED * ALIGNED;
    return piece;
}

/* Floats past the end of the last piece that whole vectors may read. */
#define SPARE 64

static int provide(Arena *arena) {
    size_t bytes = (arena->used + SPARE * sizeof(float) + ALIGNED - 1) / ALIGNED * ALIGNED;
    arena->from = aligned_alloc(ALIGNED, bytes);
    arena->used = 0;
    return arena->from != NULL;
}

static void zero(float *values, size_t count) { memset(values, 0, count * sizeof(float)); }

static void add_to(float *sum, const float *values, size_t count) {
    for (size_t i = 0; i < count; i++) sum[i] += values[i];
}
