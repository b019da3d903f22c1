/* All blocks of the model over one step's packed tokens, in one call.

   Called layer by layer from Python, a step would ask a hundred times for the interpreter, and wait each time until
   the process's other threads, which take in requests and load prefixes, let go of it. */
#include <string.h>
#include <time.h>

#include "kernels.h"
#include "threads.h"

#define ROWS 8 /* of one piece of work */

typedef struct {
    long inputs, outputs;
    const void *packed;
    const float *bias, *scales; /* scales and sums: of int8 alone */
    const int32_t *sums;
} Matrix;

typedef struct {
    const float *weight, *bias;
} Norm;

typedef struct {
    Norm ln_1, ln_2;
    Matrix qkv, attention_out, mlp_in, mlp_out;
} Block;

typedef struct {
    long layers, width, heads, head_dim, vocab, context;
    float eps;
    const float *tokens, *positions; /* [vocab, width], [context, width] */
    const Block *blocks;
    Norm ln_f;
} Model;

/* See attention.c; keys and values of all layers lie in `content`. */
typedef struct {
    char *content;
    long stride, page, bf16;
    const int64_t *tables, *tokens, *tasks;
    long count;
} Memory;

enum { PRODUCTS, ATTENTION, NORMS, REST }; /* of `spent`, in nanoseconds */

typedef struct {
    const Model *model;
    int64_t *spent, last;
    uint8_t *q;
    float *row_scales;
    int threads;
} Run;

static int64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void spend(Run *run, int part)
{
    int64_t at = now();
    run->spent[part] += at - run->last;
    run->last = at;
}

static void norm(Run *run, const Norm *by, const float *x, long n, float *out)
{
    norm_f32(x, n, run->model->width, by->weight, by->bias, run->model->eps, out, run->threads);
    spend(run, NORMS);
}

static void product(Run *run, const Matrix *by, const float *x, long n, int gelu, const float *add, float *out)
{
    if (by->scales)
        linear_i8(x, n, by->inputs, by->packed, by->scales, by->sums, by->outputs, by->bias, gelu, add, run->q,
                  run->row_scales, out, run->threads);
    else linear_f32(x, n, by->inputs, by->packed, by->outputs, by->bias, gelu, add, out, run->threads);
    spend(run, PRODUCTS);
}

typedef struct {
    const Model *model;
    const int64_t *ids, *places;
    long n;
    float *out;
} Embedding;

static void embed(const void *what, long piece)
{
    const Embedding *of = what;
    long width = of->model->width;
    for (long i = piece * ROWS; i < piece * ROWS + ROWS && i < of->n; i++) {
        const float *token = of->model->tokens + of->ids[i] * width;
        const float *position = of->model->positions + of->places[i] * width;
        for (long d = 0; d < width; d++) of->out[i * width + d] = token[d] + position[d];
    }
}

static void gather(const float *from, const int64_t *which, long count, long width, float *to)
{
    for (long i = 0; i < count; i++) memcpy(to + i * width, from + which[i] * width, width * 4);
}

/* ids, places [n] -> out [count, width], the hidden states of the tokens `wanted` [count] after the last norm; of
   all n if it is 0. scratch: see Forward in forward.py. Returns 0, or 1 if an id or a place is out of range. */
int forward(const Model *model, const int64_t *ids, const int64_t *places, long n, const Memory *memory,
            const int64_t *wanted, long count, float *scratch, float *out, int64_t *spent, int threads)
{
    for (long i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= model->vocab || places[i] < 0 || places[i] >= model->context) return 1;
    long width = model->width, wide = 3 * width, inner = model->blocks[0].mlp_in.outputs;
    long layer_size = model->heads * memory->page * model->head_dim * (memory->bf16 ? 2 : 4);
    long most = count > n ? count : n; /* a token may be wanted twice */
    float *x = scratch, *y = x + most * width, *normed = y + most * width, *mixed = normed + most * width;
    float *broad = mixed + most * width, *row_scales = broad + most * (inner > wide ? inner : wide);
    Run run = {model, spent, now(), (uint8_t *)(row_scales + most), row_scales, threads};
    Embedding of = {model, ids, places, n, x};
    run_pieces(embed, &of, (n + ROWS - 1) / ROWS, threads);
    spend(&run, REST);
    for (long i = 0; i < model->layers; i++) {
        const Block *block = model->blocks + i;
        norm(&run, &block->ln_1, x, n, normed);
        product(&run, &block->qkv, normed, n, 0, 0, broad);
        char *keys = memory->content + 2 * i * layer_size;
        attend(broad, mixed, keys, keys + layer_size, memory->stride, model->heads, model->head_dim, memory->page,
               (int)memory->bf16, memory->tables, memory->tokens, n, memory->tasks, memory->count, threads);
        spend(&run, ATTENTION);
        if (wanted && i == model->layers - 1) {
            float *whole = x, *all = mixed;
            gather(x, wanted, count, width, y);
            gather(mixed, wanted, count, width, normed);
            x = y, y = whole, mixed = normed, normed = all, n = count;
            if (!n) return 0;
        }
        product(&run, &block->attention_out, mixed, n, 0, x, y);
        norm(&run, &block->ln_2, y, n, normed);
        product(&run, &block->mlp_in, normed, n, 1, 0, broad);
        product(&run, &block->mlp_out, broad, n, 0, y, x);
    }
    norm(&run, &model->ln_f, x, n, out);
    return 0;
}
