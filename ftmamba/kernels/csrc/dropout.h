/* Dropout without a mask: whether an element stays is a hash of the seed and of its place, so that
 * the backward pass is the same function over the gradient. */
#pragma once

#include "kernels.h"
#include "simd.h"

#define DROPOUT_BLOCK 65536

typedef uint32_t uvec __attribute__((vector_size(4 * WIDTH)));

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

INLINE uvec mix_vector(uvec x) {
    MIX(x)
    return x;
}

typedef struct {
    const Dropout *call;
    size_t blocks;
} DropoutWork;

static void drop_block(const Dropout *call, size_t block) {
    uint32_t low = (uint32_t)call->seed, high = (uint32_t)(call->seed >> 32);
    uint32_t first = mix((uint32_t)block ^ mix(low)), second = mix(first ^ mix(high));
    /* A hash below the bound is dropped. */
    uint32_t bound = (uint32_t)(call->rate * 4294967296.0);
    float scale = (float)(1.0 / (1.0 - call->rate));
    size_t start = block * DROPOUT_BLOCK, end = start + DROPOUT_BLOCK;
    if (end > (size_t)call->count) end = (size_t)call->count;
    uvec place;
    for (uint32_t lane = 0; lane < WIDTH; lane++) place[lane] = lane;
    size_t i = start;
    for (; i + WIDTH <= end; i += WIDTH, place += WIDTH) {
        uvec hash = mix_vector(mix_vector(place ^ first) ^ second);
        ivec kept = hash >= bound;
        store(call->out + i, (vec)(kept & (ivec)(load(call->x + i) * scale)));
    }
    for (uint32_t lane = 0; i < end; i++, lane++) {
        uint32_t hash = mix(mix(place[lane] ^ first) ^ second);
        call->out[i] = hash >= bound ? call->x[i] * scale : 0.0f;
    }
}

static void drop_part(void *context, int64_t index) {
    const DropoutWork *work = context;
    size_t threads = (size_t)work->call->threads;
    size_t block = work->blocks * (size_t)index / threads;
    size_t end = work->blocks * ((size_t)index + 1) / threads;
    for (; block < end; block++) drop_block(work->call, block);
}

static int dropout(const Dropout *call) {
    size_t blocks = ((size_t)call->count + DROPOUT_BLOCK - 1) / DROPOUT_BLOCK;
    DropoutWork work = {call, blocks};
    run_tasks(call->threads, drop_part, &work);
    return 0;
}
