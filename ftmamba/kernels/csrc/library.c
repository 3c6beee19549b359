/* The functions of the shared library: each checks its sizes and calls the chosen variant. */
#include <stddef.h>
#include <string.h>

#include "kernels.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

extern const Variant variant_generic, variant_emulated_tiles;
#if defined(__x86_64__)
extern const Variant variant_avx2, variant_avx512;
#endif

void ftmamba_use_runtime(void *parallel, void *num_threads);

#ifdef WITH_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
extern const Variant variant_amx;

#define REQUEST_FEATURE 0x1023 /* arch_prctl's ARCH_REQ_XCOMP_PERM */
#define TILE_DATA 18

/* The processor has tiles of bfloat16, and the kernel lends them to this process. */
static int has_tiles(void) {
    static int known; /* 1: no, 2: yes */
    unsigned a, b, c, d, more;
    if (known) return known == 2;
    known = 1;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !__get_cpuid_count(7, 1, &more, &b, &c, &a))
        return 0;
    int bfloat16_tiles = (d >> 22 & 1) && (d >> 24 & 1), bfloat16_vectors = more >> 5 & 1;
    if (bfloat16_tiles && bfloat16_vectors &&
        syscall(SYS_arch_prctl, REQUEST_FEATURE, TILE_DATA) == 0)
        known = 2;
    return known == 2;
}
#endif

static const Variant *runnable(int64_t index) {
    int64_t count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#ifdef WITH_AMX
    if (avx512 && has_tiles() && count++ == index) return &variant_amx;
#endif
    if (avx512 && count++ == index) return &variant_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && count++ == index)
        return &variant_avx2;
#endif
    if (count++ == index) return &variant_generic;
    return count == index ? &variant_emulated_tiles : NULL;
}

/* Name of the index-th variant that this processor runs, fastest first; NULL past the last. The
 * last has nothing but the softmax on emulated tiles, for its tests. */
EXPORT const char *ftmamba_variant(int64_t index) {
    const Variant *variant = runnable(index);
    return variant ? variant->name : NULL;
}

/* Bytes of all structs together: another number was built for other callers. */
EXPORT int64_t ftmamba_bytes_of_structs(void) {
    return sizeof(Layer) + sizeof(Scan) + sizeof(Dropout) + sizeof(Gelu) + sizeof(Normalize) +
           sizeof(Exponentials) + sizeof(Softmax);
}

EXPORT void ftmamba_set_runtime(void *parallel, void *num_threads) {
    ftmamba_use_runtime(parallel, num_threads);
}

enum { DONE = 0, NO_MEMORY = 1, BAD_SIZES = 2 };

static int bad_layer(const Layer *layer) {
    return layer->rows < 1 || layer->length < 1 || layer->hidden < 1 || layer->inner < 1 ||
           layer->state < 1 || layer->rank < 1 || layer->kernel < 1 || layer->kernel > 32 ||
           layer->threads < 1 || layer->threads > MOST_THREADS ||
           !(layer->drop_rate >= 0.0 && layer->drop_rate < 1.0) ||
           !layer->conv_before != !layer->state_before ||
           !layer->conv_after != !layer->state_after ||
           (layer->reverse && (layer->conv_before || layer->conv_after));
}

static int bad_scan(const Scan *scan) {
    return scan->rows < 1 || scan->length < 1 || scan->inner < 1 || scan->state < 1 ||
           scan->threads < 1 || scan->threads > MOST_THREADS || scan->threads > scan->rows;
}

static int bad_dropout(const Dropout *dropout) {
    return dropout->count < 1 || dropout->threads < 1 || dropout->threads > MOST_THREADS ||
           !(dropout->rate >= 0.0 && dropout->rate < 1.0) ||
           (dropout->added ? dropout->narrow_out : dropout->narrow_x);
}

static int bad_gelu(const Gelu *gelu) {
    return gelu->count < 1 || gelu->threads < 1 || gelu->threads > MOST_THREADS ||
           !(gelu->rate >= 0.0 && gelu->rate < 1.0);
}

static int bad_normalize(const Normalize *call) {
    return call->rows < 1 || call->size < 1 || call->threads < 1 ||
           call->threads > MOST_THREADS || !(call->eps > 0.0);
}

static int bad_exponentials(const Exponentials *call) {
    return call->rows < 1 || call->columns < 1 || call->threads < 1 ||
           call->threads > MOST_THREADS || call->stride < call->columns ||
           (call->lists && call->width < 1) || (call->listed && !call->lists);
}

static int bad_softmax(const Softmax *call) {
    return call->rows < 1 || call->columns < 1 || call->size < 1 || call->threads < 1 ||
           call->threads > MOST_THREADS || (call->lists && call->width < 1) ||
           (call->listed && !call->lists) || !call->d_hidden != !call->d_items;
}

#define CALL(FUNCTION, ARGUMENT, BAD) \
    const Variant *chosen = runnable(variant); \
    if (!chosen || !chosen->FUNCTION || BAD(ARGUMENT)) return BAD_SIZES; \
    return chosen->FUNCTION(ARGUMENT) ? NO_MEMORY : DONE;

EXPORT int ftmamba_layer_forward(int64_t variant, const Layer *layer) {
    CALL(layer_forward, layer, bad_layer)
}

EXPORT int ftmamba_layer_backward(int64_t variant, const Layer *layer) {
    CALL(layer_backward, layer, bad_layer)
}

EXPORT int ftmamba_scan_forward(int64_t variant, const Scan *scan) {
    CALL(scan_forward, scan, bad_scan)
}

EXPORT int ftmamba_scan_backward(int64_t variant, const Scan *scan) {
    CALL(scan_backward, scan, bad_scan)
}

EXPORT int ftmamba_dropout(int64_t variant, const Dropout *dropout) {
    CALL(dropout, dropout, bad_dropout)
}

EXPORT int ftmamba_gelu(int64_t variant, const Gelu *gelu) {
    CALL(gelu, gelu, bad_gelu)
}

EXPORT int ftmamba_normalize(int64_t variant, const Normalize *call) {
    CALL(normalize, call, bad_normalize)
}

EXPORT int ftmamba_softmax(int64_t variant, const Softmax *call) {
    CALL(softmax, call, bad_softmax)
}

EXPORT int ftmamba_exponentials(int64_t variant, const Exponentials *call) {
    CALL(exponentials, call, bad_exponentials)
}
