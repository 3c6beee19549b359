/* GELU, x times the normal distribution function of x, and dropout after it, in one pass. */
#pragma once

#include "dropout.h"

/* The distribution function and the density at x. Abramowitz & Stegun 7.1.26: error below 1e-7. */
INLINE vec normal_distribution(vec x, vec *density) {
    vec magnitude = larger(x, -x);
    vec t = reciprocal(1.0f + 0.231641888f * magnitude);
    vec p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vec e = exp_of(magnitude * magnitude * -0.5f);
    vec tail = 0.5f * p * t * e;
    *density = 0.398942280f * e;
    ivec negative = x < 0.0f;
    return (vec)((negative & (ivec)tail) | (~negative & (ivec)(1.0f - tail)));
}

INLINE vec gelu_of(vec x) {
    vec density;
    return x * normal_distribution(x, &density);
}

INLINE vec gelu_slope(vec x) {
    vec density, below = normal_distribution(x, &density);
    return below + x * density;
}

/* out = dropout(gelu(x)), or with d_out the gradient of x: one function of the two, so that the
 * same numbers are dropped. */
INLINE void gelu_block(const Gelu *call, size_t block, const int narrow, const int backward) {
    Drops drops = drops_of(call->seed, call->rate, block);
    Span span = block_span(block, call->count);
    for (size_t i = span.start; i < span.end; i += WIDTH) {
        size_t left = span.end - i;
        int whole = left >= WIDTH;
        vec x = whole ? load_either(call->x, i, narrow) : load_some(call->x, i, left, 0, narrow);
        vec out;
        if (backward) {
            vec d_out = whole ? load_either(call->d_out, i, narrow)
                              : load_some(call->d_out, i, left, 0, narrow);
            out = drop(&drops, d_out) * gelu_slope(x);
        } else out = drop(&drops, gelu_of(x));
        if (whole) store_either(call->out, i, out, narrow);
        else store_some(call->out, i, left, out, narrow);
    }
}

static void gelu_part(void *context, int64_t index) {
    const Gelu *call = context;
    Span blocks = blocks_of(call->count, index, call->threads);
    for (size_t block = blocks.start; block < blocks.end; block++) {
        if (call->narrow && call->d_out) gelu_block(call, block, 1, 1);
        else if (call->narrow) gelu_block(call, block, 1, 0);
        else if (call->d_out) gelu_block(call, block, 0, 1);
        else gelu_block(call, block, 0, 0);
    }
}

static int gelu(const Gelu *call) {
    run_tasks(call->threads, gelu_part, (void *)call);
    return 0;
}
