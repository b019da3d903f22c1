/* Pieces of work on a few threads, where nobody waits for a thread that has not arrived.

   OpenMP's regions end with a barrier of all threads. Where another program holds a core, each of them waits
   for the scheduler to give the missing thread its turn: a step of a hundred regions becomes ten times slower
   than on one core. Here the caller takes pieces itself until none is left, and waits only for pieces that a
   helper has begun. Helpers look for work a while before they sleep, so that the next run finds them awake. */
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define MOST_HELPERS 63
#define SPINS 3000 /* looks before sleep, some 50 us: longer than Python takes between two runs of a step */
#define CLOSED 0xffffffffu

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE()
#endif

/* Number of the run in the upper half, next piece in the lower: who takes a piece by a compare-and-swap knows
   that what he read below is of the same run. */
static _Atomic uint64_t state = CLOSED;
static _Atomic(Work) run_work;
static _Atomic(const void *) run_what;
static atomic_long run_count, done;
static atomic_int run_helpers; /* that may take part */

static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER; /* one run at a time */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* for the two conditions */
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
static atomic_int asleep, waiting;
static int helpers;

static void take_pieces(void)
{
    for (;;) {
        uint64_t at = atomic_load(&state);
        Work work = atomic_load_explicit(&run_work, memory_order_relaxed);
        const void *what = atomic_load_explicit(&run_what, memory_order_relaxed);
        long count = atomic_load_explicit(&run_count, memory_order_relaxed);
        uint32_t piece = (uint32_t)at;
        if (piece >= count) return;
        if (!atomic_compare_exchange_weak(&state, &at, at + 1)) continue;
        work(what, piece);
        if (atomic_fetch_add(&done, 1) + 1 == count && atomic_load(&waiting)) {
            pthread_mutex_lock(&lock);
            pthread_cond_signal(&ended);
            pthread_mutex_unlock(&lock);
        }
    }
}

static void *help(void *number)
{
    uint32_t seen = 0;
    for (;;) {
        uint64_t at = atomic_load(&state);
        for (int i = 0; i < SPINS && at >> 32 == seen; i++) {
            PAUSE();
            at = atomic_load(&state);
        }
        if (at >> 32 == seen) {
            pthread_mutex_lock(&lock);
            atomic_fetch_add(&asleep, 1);
            while ((at = atomic_load(&state)) >> 32 == seen) pthread_cond_wait(&begun, &lock);
            atomic_fetch_sub(&asleep, 1);
            pthread_mutex_unlock(&lock);
        }
        if ((uint32_t)at == CLOSED) continue; /* about to open */
        seen = at >> 32;
        if ((long)number < atomic_load(&run_helpers)) take_pieces();
    }
    return 0;
}

/* A fork takes only the thread that forks. */
static void forget_helpers(void)
{
    helpers = 0;
    atomic_fetch_or(&state, CLOSED); /* a run of the parent's may be open */
    asleep = waiting = 0;
    pthread_mutex_init(&busy, 0);
    pthread_mutex_init(&lock, 0);
    pthread_cond_init(&begun, 0);
    pthread_cond_init(&ended, 0);
}

static void start_helpers(int wanted)
{
    static int registered;
    if (!registered) registered = !pthread_atfork(0, 0, forget_helpers);
    pthread_attr_t roomy;
    if (pthread_attr_init(&roomy)) return; /* then fewer do it */
    pthread_attr_setstacksize(&roomy, 1 << 20); /* attention takes a third of it; some systems give less */
    for (pthread_t thread; helpers < wanted && helpers < MOST_HELPERS; helpers++) {
        if (pthread_create(&thread, &roomy, help, (void *)(long)helpers)) break;
        pthread_detach(thread);
    }
    pthread_attr_destroy(&roomy);
}

void run_pieces(Work work, const void *what, long pieces, int threads)
{
    if (threads < 2 || pieces < 2 || pthread_mutex_trylock(&busy)) {
        for (long piece = 0; piece < pieces; piece++) work(what, piece);
        return;
    }
    start_helpers(threads - 1);
    uint64_t number = ((atomic_load(&state) >> 32) + 1) << 32;
    atomic_store(&state, number | CLOSED);
    atomic_thread_fence(memory_order_seq_cst);
    atomic_store(&run_work, work);
    atomic_store(&run_what, what);
    atomic_store(&run_count, pieces);
    atomic_store(&run_helpers, threads - 1);
    atomic_store(&done, 0);
    atomic_store(&state, number);
    if (atomic_load(&asleep)) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&begun);
        pthread_mutex_unlock(&lock);
    }
    take_pieces();
    for (int i = 0; i < SPINS && atomic_load(&done) < pieces; i++) PAUSE();
    if (atomic_load(&done) < pieces) { /* a helper lost its core: sleep, so that it may have this one */
        pthread_mutex_lock(&lock);
        atomic_store(&waiting, 1);
        while (atomic_load(&done) < pieces) pthread_cond_wait(&ended, &lock);
        atomic_store(&waiting, 0);
        pthread_mutex_unlock(&lock);
    }
    pthread_mutex_unlock(&busy);
}
