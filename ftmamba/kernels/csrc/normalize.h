/* Rows scaled to length 1, x / max(|x|, eps), and the gradient: one pass each way. */
#pragma once

#include "kernels.h"
#include "simd.h"

INLINE float inner_product(const float *a, const float *b, size_t size) {
    vec sums = splat(0);
    float rest = 0;
    size_t whole = size / WIDTH * WIDTH;
    for (size_t i = 0; i < whole; i += WIDTH) sums += load(a + i) * load(b + i);
    for (size_t i = whole; i < size; i++) rest += a[i] * b[i];
    return lane_sum(sums) + rest;
}

/* out = scale d - along x. */
INLINE void combine(float *out, float scale, const float *d, float along, const float *x,
                    size_t size) {
    size_t whole = size / WIDTH * WIDTH;
    for (size_t i = 0; i < whole; i += WIDTH)
        store(out + i, scale * load(d + i) - along * load(x + i));
    for (size_t i = whole; i < size; i++) out[i] = scale * d[i] - along * x[i];
}

/* Shorter rows than eps are divided by it, and their length has no gradient. */
static void normalize_part(void *context, int64_t index) {
    const Normalize *call = context;
    size_t size = call->size, row = call->rows * index / call->threads;
    size_t end = call->rows * (index + 1) / call->threads;
    for (; row < end; row++) {
        const float *x = call->x + row * size;
        float length = __builtin_sqrtf(inner_product(x, x, size)), eps = (float)call->eps;
        int is_long = !(length <= eps);
        float scale = 1.0f / (is_long ? length : eps), along = 0;
        if (!call->d_out) {
            combine(call->out + row * size, scale, x, 0, x, size);
            continue;
        }
        const float *d = call->d_out + row * size;
        if (is_long) along = inner_product(x, d, size) * scale * scale * scale;
        combine(call->out + row * size, scale, d, along, x, size);
    }
}

static int normalize(const Normalize *call) {
    run_tasks(call->threads, normalize_part, (void *)call);
    return 0;
}
