/* The exponentials of a softmax, in place: each row less its largest number. */
#pragma once

#include "kernels.h"
#include "narrow.h"

/* Below it an exponential is zero in float32; and infinity less infinity never comes up. */
#define LEAST_EXPONENT -104.0f

INLINE float lane_largest(vec value) {
    float largest = value[0];
    for (int i = 1; i < WIDTH; i++)
        if (!(value[i] <= largest)) largest = value[i];
    return largest;
}

INLINE float row_largest(const void *x, size_t start, size_t columns, const int narrow) {
    vec first = splat(-__builtin_inff()), second = first;
    size_t i = 0;
    for (; i + 2 * WIDTH <= columns; i += 2 * WIDTH) {
        first = larger(first, load_either(x, start + i, narrow));
        second = larger(second, load_either(x, start + i + WIDTH, narrow));
    }
    for (; i < columns; i += WIDTH) {
        size_t left = columns - i;
        vec value = left < WIDTH
            ? load_some(x, start + i, left, -__builtin_inff(), narrow)
            : load_either(x, start + i, narrow);
        first = larger(first, value);
    }
    return lane_largest(larger(first, second));
}

INLINE vec exponential_of(vec x, float largest) {
    return exp_of(larger(x - largest, splat(LEAST_EXPONENT)));
}

INLINE void exponentiate_row(const Exponentials *call, size_t row, const int narrow) {
    size_t columns = call->columns, start = row * call->stride, i = 0;
    float largest = row_largest(call->x, start, columns, narrow);
    vec first = splat(0), second = first;
    for (; i + 2 * WIDTH <= columns; i += 2 * WIDTH) {
        vec a = exponential_of(load_either(call->x, start + i, narrow), largest);
        vec b = exponential_of(load_either(call->x, start + i + WIDTH, narrow), largest);
        store_either(call->x, start + i, a, narrow);
        store_either(call->x, start + i + WIDTH, b, narrow);
        first += a, second += b;
    }
    float rest = 0;
    for (; i < columns; i += WIDTH) {
        size_t left = columns - i < WIDTH ? columns - i : WIDTH;
        vec e = exponential_of(load_some(call->x, start + i, left, largest, narrow), largest);
        store_some(call->x, start + i, left, e, narrow);
        for (size_t lane = 0; lane < left; lane++) rest += e[lane];
    }
    call->largest[row] = largest;
    call->sum[row] = lane_sum(first + second) + rest;
}

INLINE float number_at(const void *x, size_t i, const int narrow) {
    if (!narrow) return ((const float *)x)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

INLINE void put_number(void *x, size_t i, float value, const int narrow) {
    if (narrow) {
        uint32_t bits;
        memcpy(&bits, &value, sizeof(bits));
        ((uint16_t *)x)[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    } else ((float *)x)[i] = value;
}

/* What follows reads the whole row: it is in the cache when these few places are written. */
INLINE void add_bias(const Exponentials *call, size_t row, const int narrow) {
    const int64_t *list = call->lists + call->list[row] * call->width;
    size_t start = row * call->stride, kept = start + (call->kept ? call->kept[row] : 0);
    float bias = (float)call->bias, before = call->kept ? number_at(call->x, kept, narrow) : 0;
    for (int64_t i = 0; i < call->ahead[row]; i++) {
        size_t at = start + (list[i] < 0 ? 0 : list[i]);
        if (list[i] >= 0) put_number(call->x, at, number_at(call->x, at, narrow) + bias, narrow);
    }
    if (call->kept) put_number(call->x, kept, before, narrow);
}

INLINE float sum_of_listed(const Exponentials *call, size_t row, const int narrow) {
    const int64_t *list = call->lists + call->list[row] * call->width;
    float sum = 0;
    for (int64_t i = 0; i < call->ahead[row]; i++)
        if (list[i] >= 0) sum += number_at(call->x, row * call->stride + list[i], narrow);
    return sum;
}

INLINE void one_row(const Exponentials *call, size_t row, const int narrow) {
    if (call->lists) add_bias(call, row, narrow);
    exponentiate_row(call, row, narrow);
    if (call->listed) call->listed[row] = sum_of_listed(call, row, narrow);
}

static void exponentiate_part(void *context, int64_t index) {
    const Exponentials *call = context;
    size_t row = call->rows * index / call->threads, end = call->rows * (index + 1) / call->threads;
    for (; row < end; row++) {
        if (call->narrow) one_row(call, row, 1);
        else one_row(call, row, 0);
    }
}

static int exponentials(const Exponentials *call) {
    run_tasks(call->threads, exponentiate_part, (void *)call);
    return 0;
}
