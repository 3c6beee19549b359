/* LayerNorm (arXiv 1607.06450) of one token's `size` numbers, and its gradient. */
#pragma once

#include "simd.h"

typedef struct {
    size_t size;
    float eps;
    const float *weight, *bias; /* bias may be NULL */
} Norm;

typedef struct {
    float mean, scale;
} Moments;

INLINE Moments moments_of(Norm norm, const float *x) {
    vec sums = splat(0), squares = splat(0);
    float sum = 0, square = 0;
    size_t whole = norm.size / WIDTH * WIDTH;
    for (size_t i = 0; i < whole; i += WIDTH) sums += load(x + i);
    for (size_t i = whole; i < norm.size; i++) sum += x[i];
    float mean = (sum + lane_sum(sums)) / (float)norm.size;
    for (size_t i = 0; i < whole; i += WIDTH) {
        vec centred = load(x + i) - mean;
        squares += centred * centred;
    }
    for (size_t i = whole; i < norm.size; i++) square += (x[i] - mean) * (x[i] - mean);
    float variance = (square + lane_sum(squares)) / (float)norm.size;
    /* 1 / sqrt(inf) would be 0 and hide that the numbers are too large to be normalised. */
    float scale = __builtin_isfinite(variance) ? 1.0f / __builtin_sqrtf(variance + norm.eps)
                                               : __builtin_nanf("");
    return (Moments){mean, scale};
}

INLINE void norm_forward(Norm norm, const float *x, float *to) {
    Moments moments = moments_of(norm, x);
    size_t whole = norm.size / WIDTH * WIDTH;
    for (size_t i = 0; i < whole; i += WIDTH) {
        vec normal = (load(x + i) - moments.mean) * moments.scale;
        store(to + i, normal * load(norm.weight + i) + (norm.bias ? load(norm.bias + i) : splat(0)));
    }
    for (size_t i = whole; i < norm.size; i++) {
        float normal = (x[i] - moments.mean) * moments.scale;
        to[i] = normal * norm.weight[i] + (norm.bias ? norm.bias[i] : 0);
    }
}

/* d is the gradient by the output; d_weight and d_bias (size) are added to. */
INLINE void norm_backward(Norm norm, const float *x, const float *d, float *d_x, float *d_weight,
                          float *d_bias) {
    Moments moments = moments_of(norm, x);
    size_t whole = norm.size / WIDTH * WIDTH;
    vec sums = splat(0), dots = splat(0);
    float sum = 0, dot = 0;
    for (size_t i = 0; i < whole; i += WIDTH) {
        vec normal = (load(x + i) - moments.mean) * moments.scale, by_output = load(d + i);
        vec weighted = by_output * load(norm.weight + i);
        sums += weighted;
        dots += weighted * normal;
        store(d_weight + i, load(d_weight + i) + by_output * normal);
        store(d_bias + i, load(d_bias + i) + by_output);
    }
    for (size_t i = whole; i < norm.size; i++) {
        float normal = (x[i] - moments.mean) * moments.scale;
        sum += d[i] * norm.weight[i];
        dot += d[i] * norm.weight[i] * normal;
        d_weight[i] += d[i] * normal;
        d_bias[i] += d[i];
    }
    float mean = (sum + lane_sum(sums)) / (float)norm.size;
    float slope = (dot + lane_sum(dots)) / (float)norm.size;
    for (size_t i = 0; i < whole; i += WIDTH) {
        vec normal = (load(x + i) - moments.mean) * moments.scale;
        vec weighted = load(d + i) * load(norm.weight + i);
        store(d_x + i, moments.scale * (weighted - mean - normal * slope));
    }
    for (size_t i = whole; i < norm.size; i++) {
        float normal = (x[i] - moments.mean) * moments.scale;
        d_x[i] = moments.scale * (d[i] * norm.weight[i] - mean - normal * slope);
    }
}
