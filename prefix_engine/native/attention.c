/* Attention of one step over paged keys and values.

   A page holds `page` slots of every head of every layer, [stride, page, head_dim], float32 or bfloat16; this
   layer's keys are the `heads` first of the stride from `keys` on, its values from `values` on.
   What each packed token may see is a prefix (m positions of its pages) and a text (its own pages). */
#include "kernels.h"
#include "queries.h"
#include "threads.h"

#define MOST 128   /* tokens of one task */
#define TOGETHER 4 /* heads of one piece of work at most */

typedef struct {
    const float *qkv; /* [n, 3, heads, head_dim] */
    float *out;       /* [n, heads, head_dim] */
    char *keys, *values;
    long stride, heads, head_dim, page, bf16;
    const int64_t *tables;  /* page numbers of prefixes and texts, one list after the other */
    const int64_t *tokens;  /* [n, 3]: slot of its key and value, place of its text in tables, its text's length */
    const int64_t *tasks;   /* [count, 5]: first token, tokens, place of the prefix in tables, m, one text */
} Step;

INLINE void keep(char *row, const float *from, long dim, int bf16)
{
    if (!bf16) {
        memcpy(row, from, dim * 4);
        return;
    }
    for (long d = 0; d < dim; d++) { /* to the nearest, ties to even; a NaN stays one */
        uint32_t bits;
        memcpy(&bits, from + d, 4);
        uint16_t near = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        ((uint16_t *)row)[d] = from[d] != from[d] ? 0x7fc0 : near;
    }
}

/* Where positions at..at+BLOCK-1 of a text of `length` lie in the memory of keys, and of values, in bytes; those
   behind its end lie at the last one. */
static void find(const Step *step, long head, const int64_t *table, long at, long length, long size, long *rows)
{
    long last = length - 1 < at + BLOCK - 1 ? length - 1 : at + BLOCK - 1, page = step->page, j = 0;
    for (long number = at / page, within = at % page; j + at <= last; number++, within = 0) {
        long place = ((table[number] * step->stride + head) * page + within) * size;
        for (; within < page && j + at <= last; within++, place += size) rows[j++] = place;
    }
    for (; j < BLOCK; j++) rows[j] = rows[j - 1];
}

/* What is read next: `length` positions of the pages at `table`, nothing if that is 0. */
typedef struct {
    const int64_t *table;
    long length, head;
} Then;

/* `length` positions of the pages at `table`; limits[i] of them for query i, all of them if limits is 0. */
static void absorb(const Step *step, Mix *mixes, const float *queries, int count, long head, const int64_t *table,
                   long length, const long *limits, Then then, long dim, long wide, int bf16)
{
    long size = dim * (bf16 ? 2 : 4), places[2][BLOCK], *rows = places[0], *next = places[1];
    float keys[WIDEST * BLOCK], values[WIDEST * BLOCK];
    if (length) find(step, head, table, 0, length, size, rows);
    for (long at = 0; at < length; at += BLOCK) {
        long many = length - at < BLOCK ? length - at : BLOCK, *last = rows;
        if (at) {
            rows = next;
            next = last;
        }
        if (at + BLOCK < length) find(step, head, table, at + BLOCK, length, size, next);
        else if (then.length) find(step, then.head, then.table, 0, then.length, size, next);
        else memcpy(next, rows, sizeof places[0]);
        if (count <= FEW && dim == wide) {
            for (int i = 0; i < count; i++) {
                long seen = limits ? limits[i] - at : many;
                if (seen > 0)
                    ask_one(mixes + i, queries + i * wide, step->keys, step->values, rows, seen < many ? seen : many,
                              next, dim, bf16);
            }
            continue;
        }
        turn_block(keys, values, step->keys, step->values, rows, many, dim, wide, bf16);
        for (int first = 0; first < count; first += QUERIES) {
            long counts[QUERIES], any = 0;
            for (int i = 0; i < QUERIES; i++) {
                long seen = first + i >= count ? 0 : limits ? limits[first + i] - at : many;
                counts[i] = seen < 0 ? 0 : seen < many ? seen : many;
                any += counts[i];
            }
            if (!any) continue;
            if (count - first >= QUERIES) {
                ask_some(mixes + first, queries + first * wide, counts, keys, values, dim, wide);
                continue;
            }
            /* A tile is whole: what stands behind the last query may be another row's, or nobody's. */
            Mix few[QUERIES] = {0};
            float asked[QUERIES * WIDEST] = {0};
            memcpy(few, mixes + first, (count - first) * sizeof *few);
            memcpy(asked, queries + first * wide, (count - first) * wide * 4);
            ask_some(few, asked, counts, keys, values, dim, wide);
            memcpy(mixes + first, few, (count - first) * sizeof *few);
        }
    }
}

/* One head of a task; `more` if the next head follows at once. */
static void task(const Step *step, const int64_t *what, long head, int more)
{
    long dim = step->head_dim, bf16 = step->bf16;
    long first = what[0], m = what[3], limits[MOST];
    int count = (int)what[1], one_text = (int)what[4];
    long wide = (dim + VL - 1) / VL * VL;
    float queries[MOST * WIDEST], scale = 1.0f / sqrtf((float)dim);
    Mix mixes[MOST];
    for (int i = 0; i < count; i++) {
        const float *query = step->qkv + ((first + i) * 3 * step->heads + head) * dim;
        for (long d = 0; d < dim; d++) queries[i * wide + d] = query[d] * scale;
        mixes[i].most = -INFINITY;
        mixes[i].total = 0.0f;
        for (long d = 0; d < wide; d++) mixes[i].sums[d] = 0.0f;
        limits[i] = step->tokens[(first + i) * 3 + 2];
    }
    const int64_t *tokens = step->tokens + first * 3, *prefix = step->tables + what[2];
    Then text = {step->tables + tokens[1], limits[0], head}, after = {0, 0, 0};
    if (more) {
        Then prefix_after = {prefix, m, head + 1}, text_after = {text.table, text.length, head + 1};
        after = m ? prefix_after : text_after;
    }
    absorb(step, mixes, queries, count, head, prefix, m, 0, text, dim, wide, bf16);
    if (one_text) absorb(step, mixes, queries, count, head, text.table, limits[count - 1], limits, after, dim, wide, bf16);
    for (int i = 0; i < count && !one_text; i++) {
        Then next = after;
        if (i + 1 < count) next = (Then){step->tables + tokens[i * 3 + 4], limits[i + 1], head};
        absorb(step, mixes + i, queries + i * wide, 1, head, step->tables + tokens[i * 3 + 1], limits[i], 0, next, dim,
               wide, bf16);
    }
    for (int i = 0; i < count; i++) {
        float *out = step->out + ((first + i) * step->heads + head) * dim;
        for (long d = 0; d < dim; d++) out[d] = mixes[i].sums[d] / mixes[i].total;
    }
}

typedef struct {
    Step step;
    long n, count, together; /* heads of one piece of work */
} Whole;

static void store(const void *what, long i)
{
    const Step *of = &((const Whole *)what)->step;
    long size = of->head_dim * (of->bf16 ? 2 : 4);
    long number = of->tokens[i * 3] / of->page, within = of->tokens[i * 3] % of->page;
    for (long head = 0; head < of->heads; head++) {
        const float *key = of->qkv + ((i * 3 + 1) * of->heads + head) * of->head_dim;
        long place = ((number * of->stride + head) * of->page + within) * size;
        keep(of->keys + place, key, of->head_dim, of->bf16);
        keep(of->values + place, key + of->heads * of->head_dim, of->head_dim, of->bf16);
    }
}

static void mix(const void *what, long at)
{
    const Whole *of = what;
    long pieces = (of->step.heads + of->together - 1) / of->together, head = at % pieces * of->together;
    long last = head + of->together < of->step.heads ? head + of->together : of->step.heads;
    for (; head < last; head++) task(&of->step, of->step.tasks + at / pieces * 5, head, head + 1 < last);
}

/* Stores the step's n keys and values, then mixes; a piece of work is some heads of one task, of which the first
   positions of each are fetched while the one before ends. */
void attend(const float *qkv, float *out, char *keys, char *values, long stride, long heads, long head_dim, long page,
            int bf16, const int64_t *tables, const int64_t *tokens, long n, const int64_t *tasks, long count,
            int threads)
{
    long most = count * heads / (threads * 8), some = most < 1 ? 1 : most > TOGETHER ? TOGETHER : most;
    Whole of = {{qkv, out, keys, values, stride, heads, head_dim, page, bf16, tables, tokens, tasks}, n, count, some};
    run_pieces(store, &of, n, n > 8 ? threads : 1);
    run_pieces(mix, &of, count * ((heads + some - 1) / some), threads);
}
