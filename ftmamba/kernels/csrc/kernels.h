/* What the shared library takes: plain structs of sizes and pointers to contiguous memory, of
 * float32 where nothing else is said. */
#pragma once

#include <stdint.h>

/* Intel's tiles: compilers that know them, and a kernel that lends them. */
#if defined(__x86_64__) && defined(__linux__)
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define WITH_AMX 1
#endif
#endif

/* One Mamba layer over `rows` records of `length` tokens:
 * out = [x +] dropout(out_proj(gate(scan(silu(conv(in_proj(norm(x)))))))).
 * Shapes as in the comments: B rows, L length, H hidden, E inner, N state, R rank, K kernel. */
typedef struct {
    int64_t rows, length, hidden, inner, state, rank, kernel;
    int64_t threads;
    int64_t last;     /* only the last token's output: out is (B, H) */
    int64_t reverse;  /* read the tokens from the last to the first */
    int64_t residual; /* add x to the output */
    double eps;       /* of the norm */
    double drop_rate; /* of the dropout, 0 for none */
    uint64_t drop_seed;
    const float *x;           /* (B, L, H) */
    const float *norm_weight; /* (H), or NULL for no norm */
    const float *norm_bias;   /* (H), or NULL */
    const float *in_proj;     /* (2 E, H) */
    const float *conv_weight; /* (E, K) */
    const float *conv_bias;   /* (E), or NULL */
    const float *x_proj;      /* (R + 2 N, E) */
    const float *dt_weight;   /* (E, R) */
    const float *dt_bias;     /* (E) */
    const float *A_log;       /* (E, N) */
    const float *D;           /* (E) */
    const float *out_proj;    /* (H, E) */
    float *out;               /* (B, L, H) or (B, H) */
    float *states; /* (B, chunks - 1, padded N, padded E) ahead of every chunk but the first, or NULL */
    /* The forward pass that goes on from earlier tokens: what they left, and what these leave. */
    const float *conv_before, *state_before; /* (B, E, K - 1) and (B, E, N), both or neither */
    float *conv_after, *state_after;
    /* The backward pass alone: */
    const float *d_out;
    float *d_x, *d_norm_weight, *d_norm_bias, *d_in_proj, *d_conv_weight, *d_conv_bias, *d_x_proj,
        *d_dt_weight, *d_dt_bias, *d_A_log, *d_D, *d_out_proj;
} Layer;

/* The selective scan alone: y = C h with h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t. */
typedef struct {
    int64_t rows, length, inner, state;
    int64_t threads;
    const float *u, *dt; /* (B, L, E) */
    const float *A;      /* (E, N) */
    const float *B, *C;  /* (B, L, N) */
    float *y;            /* (B, L, E) */
    float *states;       /* as in Layer */
    const float *d_y;
    float *d_u, *d_dt, *d_A, *d_B, *d_C;
} Scan;

/* out = [added +] x, each number of x set to 0 at the rate given and the others divided by
 * 1 - rate. */
typedef struct {
    int64_t count, threads;
    int64_t narrow_x, narrow_out; /* that one is bfloat16; with `added`, out is float32 */
    uint64_t seed;
    double rate; /* in [0, 1) */
    const void *x;
    const float *added; /* NULL for nothing */
    void *out;
} Dropout;

/* out = gelu(x), then dropout as above; with d_out, of the same type, the gradient of x instead. */
typedef struct {
    int64_t count, threads;
    int64_t narrow; /* x, d_out and out are bfloat16 */
    uint64_t seed;
    double rate;
    const void *x, *d_out; /* d_out: NULL for the forward pass */
    void *out;
} Gelu;

/* out = x / max(|x|, eps) row by row; with d_out the gradient of x instead. */
typedef struct {
    int64_t rows, size, threads;
    double eps;
    const float *x, *d_out; /* (rows, size); d_out: NULL for the forward pass */
    float *out;
} Normalize;

/* x = exp(x - largest of its row), and what each row's largest number and sum are. Before, `bias` is
 * added to some columns: the first `ahead` of list `list`, but for `kept`; a column < 0 is none. */
typedef struct {
    int64_t rows, columns, threads;
    int64_t stride; /* numbers from one row of x to the next */
    int64_t narrow; /* x is bfloat16; what is summed up is not rounded */
    int64_t width;  /* of a list */
    double bias;    /* minus infinity leaves the columns out */
    void *x;        /* (rows, columns) */
    float *largest, *sum; /* (rows) */
    float *listed;        /* (rows), the sum of these columns alone; NULL if not asked for */
    const int64_t *lists; /* (lists, width); NULL for none */
    const int64_t *list, *ahead, *kept; /* (rows); kept: NULL for none */
} Exponentials;

/* The softmax of inner products of `rows` positions with `columns` items, and its gradient less the
 * labels' share of it: with p the exponentials of a row over their sum,
 * d_hidden = share p items, and d_items += (share hidden)' p, transposed. */
typedef struct {
    int64_t rows, columns, threads;
    int64_t size;  /* of an embedding */
    int64_t width; /* from here to `bias`, and the lists, as above */
    double bias;
    const float *hidden;   /* (rows, size) */
    const uint16_t *items; /* (columns, size), bfloat16; hidden and p are rounded to it */
    const int64_t *targets; /* (rows) */
    float *target;          /* (rows), the product with the target */
    float *largest, *sum, *listed;
    const int64_t *lists, *list, *ahead, *kept;
    const float *share; /* (rows) */
    float *d_hidden;    /* (rows, size); NULL for no gradient */
    float *d_items;     /* (size, columns) */
} Softmax;

#define MOST_THREADS 256

/* Tasks 0 .. count - 1, each once, on at most `count` threads. */
typedef void (*Task)(void *context, int64_t index);
void run_tasks(int64_t count, Task task, void *context);

/* Threads that work on one thing together: `meet` returns when every member has called it. */
typedef struct Meeting Meeting;
typedef struct {
    int64_t index, count;
    Meeting *meeting;
} Team;
typedef void (*TeamTask)(void *context, Team team);
void run_team(int64_t most, TeamTask task, void *context);
void meet(Team team);

/* Zero on success, 1 where memory ran out. */
typedef struct {
    const char *name;
    int (*layer_forward)(const Layer *);
    int (*layer_backward)(const Layer *);
    int (*scan_forward)(const Scan *);
    int (*scan_backward)(const Scan *);
    int (*dropout)(const Dropout *);
    int (*gelu)(const Gelu *);
    int (*normalize)(const Normalize *);
    int (*exponentials)(const Exponentials *);
    int (*softmax)(const Softmax *); /* NULL without tiles */
} Variant;
