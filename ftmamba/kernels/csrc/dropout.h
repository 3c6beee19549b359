/* Dropout without a mask: whether an element stays is a hash of the seed and of its place, so that
 * the backward pass is the same function over the gradient. */
#pragma once

#include "kernels.h"
#include "narrow.h"

#define DROPOUT_BLOCK 65536

/* Wellons' search for short hashes, its best of two rounds: bias 0.1. */
#define MIX(x) \
    x ^= x >> 16; \
    x *= 0x21f0aaadu; \
    x ^= x >> 15; \
    x *= 0xd35a2d97u; \
    x ^= x >> 15;

INLINE uint32_t mix(uint32_t x) {
    MIX(x)
    return x;
}

INLINE bits_vec mix_vector(bits_vec x) {
    MIX(x)
    return x;
}

/* What is dropped of a block: numbers in order, whose places begin with its first. */
typedef struct {
    uint32_t first, second;
    uint32_t bound; /* a hash below it is dropped */
    float scale;    /* of what stays */
    bits_vec place;
} Drops;

static Drops drops_of(uint64_t seed, double rate, size_t block) {
    Drops drops;
    drops.first = mix((uint32_t)block ^ mix((uint32_t)seed));
    drops.second = mix(drops.first ^ mix((uint32_t)(seed >> 32)));
    drops.bound = (uint32_t)(rate * 4294967296.0);
    drops.scale = (float)(1.0 / (1.0 - rate));
    for (uint32_t lane = 0; lane < WIDTH; lane++) drops.place[lane] = lane;
    return drops;
}

/* The next WIDTH numbers, those that are dropped as zero. */
INLINE vec drop(Drops *drops, vec x) {
    bits_vec hash = mix_vector(mix_vector(drops->place ^ drops->first) ^ drops->second);
    drops->place += WIDTH;
    ivec kept = hash >= drops->bound;
    return (vec)(kept & (ivec)(x * drops->scale));
}

typedef struct {
    size_t start, end;
} Span;

INLINE Span block_span(size_t block, size_t count) {
    size_t start = block * DROPOUT_BLOCK, end = start + DROPOUT_BLOCK;
    return (Span){start, end < count ? end : count};
}

/* The index-th thread's share of the blocks. */
INLINE Span blocks_of(size_t count, int64_t index, int64_t threads) {
    size_t blocks = (count + DROPOUT_BLOCK - 1) / DROPOUT_BLOCK;
    return (Span){blocks * (size_t)index / (size_t)threads,
                  blocks * (size_t)(index + 1) / (size_t)threads};
}

/* out = [added +] x, what is dropped of x as zero. */
INLINE void drop_span(Drops drops, Span span, const void *x, const float *added, void *out,
                      const int narrow_x, const int narrow_out, const int adds) {
    size_t i = span.start;
    for (; i + WIDTH <= span.end; i += WIDTH) {
        vec kept = drop(&drops, load_either(x, i, narrow_x));
        store_either(out, i, adds ? load(added + i) + kept : kept, narrow_out);
    }
    size_t left = span.end - i;
    if (!left) return;
    vec kept = drop(&drops, load_some(x, i, left, 0, narrow_x));
    if (adds) kept += load_some(added, i, left, 0, 0);
    store_some(out, i, left, kept, narrow_out);
}

INLINE void drop_block(const Dropout *call, size_t block, const int narrow_x, const int narrow_out,
                       const int adds) {
    drop_span(drops_of(call->seed, call->rate, block), block_span(block, call->count), call->x,
              call->added, call->out, narrow_x, narrow_out, adds);
}

static void drop_part(void *context, int64_t index) {
    const Dropout *call = context;
    Span blocks = blocks_of(call->count, index, call->threads);
    for (size_t block = blocks.start; block < blocks.end; block++) {
        if (call->added && call->narrow_x) drop_block(call, block, 1, 0, 1);
        else if (call->added) drop_block(call, block, 0, 0, 1);
        else if (call->narrow_out) drop_block(call, block, 0, 1, 0);
        else drop_block(call, block, 0, 0, 0);
    }
}

static int dropout(const Dropout *call) {
    run_tasks(call->threads, drop_part, (void *)call);
    return 0;
}
