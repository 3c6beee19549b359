/* Causal depthwise convolution and SiLU over one row's tokens (T, E), and its gradient.
 *
 * c_t = bias + sum_k weight_k x_{t - (K - 1) + k},  u_t = silu(c_t). `before` holds the K - 1 tokens
 * ahead of the first one, or is NULL where those are zero.
 */
#pragma once

#include "simd.h"

#define LARGEST_KERNEL 32

typedef struct {
    size_t tokens, channels, kernel;
    Lanes lanes;         /* the channels to work on */
    const float *weight; /* (kernel, channels) */
    const float *bias;   /* (channels) */
} Conv;

INLINE vec conv_at(Conv conv, const size_t kernel, const float *x, const float *before, size_t t,
                   size_t e) {
    vec sum = load(conv.bias + e);
    UNROLL for (size_t k = 0; k < kernel; k++) {
        ptrdiff_t source = (ptrdiff_t)(t + k) - (ptrdiff_t)(kernel - 1);
        vec weight = load(conv.weight + k * conv.channels + e);
        if (source >= 0)
            sum += weight * load(x + source * conv.channels + e);
        else if (before)
            sum += weight * load(before + (t + k) * conv.channels + e);
    }
    return sum;
}

INLINE void conv_forward_k(Conv conv, const size_t kernel, const float *x, const float *before,
                           float *u) {
    for (size_t e = conv.lanes.first; e < conv.lanes.end; e += WIDTH) {
        size_t head = kernel - 1 < conv.tokens ? kernel - 1 : conv.tokens;
        for (size_t t = 0; t < head; t++)
            store(u + t * conv.channels + e, silu(conv_at(conv, kernel, x, before, t, e)));
        for (size_t t = head; t < conv.tokens; t++) {
            vec sum = load(conv.bias + e);
            const float *first = x + (t - (kernel - 1)) * conv.channels + e;
            UNROLL for (size_t k = 0; k < kernel; k++)
                sum += load(conv.weight + k * conv.channels + e) * load(first + k * conv.channels);
            store(u + t * conv.channels + e, silu(sum));
        }
    }
}

static void conv_forward(Conv conv, const float *x, const float *before, float *u) {
    if (conv.kernel == 4) conv_forward_k(conv, 4, x, before, u);
    else conv_forward_k(conv, conv.kernel, x, before, u);
}

/* In place: du becomes dc. dx may be du's own memory's neighbour, never the same.
 * `after` holds dc of the K - 1 tokens that follow, or is NULL where those are zero.
 * d_weight (kernel, channels) and d_bias (channels) are added to. */
INLINE void conv_backward_k(Conv conv, const size_t kernel, const float *x, const float *before,
                            float *du, const float *after, float *dx, float *d_weight,
                            float *d_bias) {
    size_t E = conv.channels, T = conv.tokens;
    for (size_t e = conv.lanes.first; e < conv.lanes.end; e += WIDTH) {
        vec weight_sum[LARGEST_KERNEL], bias_sum = splat(0);
        UNROLL for (size_t k = 0; k < kernel; k++) weight_sum[k] = splat(0);
        for (size_t t = 0; t < T; t++) {
            vec c = conv_at(conv, kernel, x, before, t, e);
            vec s = sigmoid(c);
            vec dc = load(du + t * E + e) * s * (1.0f + c * (1.0f - s));
            store(du + t * E + e, dc);
            bias_sum += dc;
            UNROLL for (size_t k = 0; k < kernel; k++) {
                ptrdiff_t source = (ptrdiff_t)(t + k) - (ptrdiff_t)(kernel - 1);
                if (source >= 0) weight_sum[k] += dc * load(x + source * E + e);
                else if (before) weight_sum[k] += dc * load(before + (t + k) * E + e);
            }
        }
        for (size_t t = 0; t < T; t++) {
            vec sum = splat(0);
            UNROLL for (size_t j = 0; j < kernel; j++) {
                vec weight = load(conv.weight + (kernel - 1 - j) * E + e);
                if (t + j < T) sum += weight * load(du + (t + j) * E + e);
                else if (after) sum += weight * load(after + (t + j - T) * E + e);
            }
            store(dx + t * E + e, sum);
        }
        UNROLL for (size_t k = 0; k < kernel; k++)
            store(d_weight + k * E + e, load(d_weight + k * E + e) + weight_sum[k]);
        store(d_bias + e, load(d_bias + e) + bias_sum);
    }
}

static void conv_backward(Conv conv, const float *x, const float *before, float *du,
                          const float *after, float *dx, float *d_weight, float *d_bias) {
    if (conv.kernel == 4)
        conv_backward_k(conv, 4, x, before, du, after, dx, d_weight, d_bias);
    else
        conv_backward_k(conv, conv.kernel, x, before, du, after, dx, d_weight, d_bias);
}
