/* Tasks on the threads that the process already has.
 *
 * torch owns a pool of OpenMP threads; a pool of our own beside it would fight it for the cores. So
 * the caller passes the entry points GOMP_parallel and omp_get_num_threads of the runtime that torch
 * has loaded (libgomp; libomp and libiomp5 export them too). Without them one thread does it all.
 */
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

#include "kernels.h"

typedef void (*GompParallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);

static GompParallel gomp_parallel;
static int (*omp_get_num_threads)(void);

void ftmamba_use_runtime(void *parallel, void *num_threads) {
    gomp_parallel = (GompParallel)parallel;
    omp_get_num_threads = (int (*)(void))num_threads;
}

typedef struct {
    Task task;
    void *context;
    int64_t count;
    atomic_llong next;
} Queue;

/* Gradients that fade over many tokens become denormal, a hundred times slower: count them as zero. */
#if defined(__x86_64__)
#include <immintrin.h>
#define FLUSH_TO_ZERO 0x8040u
static unsigned flush_denormals(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH_TO_ZERO);
    return before;
}
static void restore(unsigned before) { _mm_setcsr(before); }
#elif defined(__aarch64__)
#define FLUSH_TO_ZERO (1ull << 24)
static uint64_t flush_denormals(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | FLUSH_TO_ZERO));
    return before;
}
static void restore(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
static int flush_denormals(void) { return 0; }
static void restore(int before) { (void)before; }
#endif

/* The runtime may lend fewer threads than asked for: each takes tasks until none is left. */
static void work_off(void *data) {
    Queue *queue = data;
    __auto_type before = flush_denormals();
    for (;;) {
        int64_t index = atomic_fetch_add(&queue->next, 1);
        if (index >= queue->count) break;
        queue->task(queue->context, index);
    }
    restore(before);
}

void run_tasks(int64_t count, Task task, void *context) {
    Queue queue = {task, context, count, 0};
    if (count > 1 && gomp_parallel) gomp_parallel(work_off, &queue, (unsigned)count, 0);
    else work_off(&queue);
}

struct Meeting {
    atomic_llong arrived, turn;
};

typedef struct {
    TeamTask task;
    void *context;
    atomic_llong joined;
    Meeting meeting;
} TeamJob;

static void pause_a_little(int64_t spins) {
    if (spins > 2000) sched_yield();
#if defined(__x86_64__)
    else _mm_pause();
#endif
}

void meet(Team team) {
    if (team.count == 1) return;
    int64_t turn = atomic_load(&team.meeting->turn);
    if (atomic_fetch_add(&team.meeting->arrived, 1) + 1 == team.count) {
        atomic_store(&team.meeting->arrived, 0);
        atomic_fetch_add(&team.meeting->turn, 1);
        return;
    }
    for (int64_t spins = 0; atomic_load(&team.meeting->turn) == turn; spins++)
        pause_a_little(spins);
}

static void join(void *data) {
    TeamJob *job = data;
    __auto_type before = flush_denormals();
    Team team = {atomic_fetch_add(&job->joined, 1), omp_get_num_threads(), &job->meeting};
    job->task(job->context, team);
    restore(before);
}

void run_team(int64_t most, TeamTask task, void *context) {
    TeamJob job = {task, context, 0, {0, 0}};
    if (most > 1 && gomp_parallel && omp_get_num_threads) {
        gomp_parallel(join, &job, (unsigned)most, 0);
        return;
    }
    __auto_type before = flush_denormals();
    task(context, (Team){0, 1, &job.meeting});
    restore(before);
}
