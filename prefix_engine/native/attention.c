/* Attention of one step over paged keys and values.

   A page holds `page` slots of every head of every layer, [stride, page, head_dim], float32 or bfloat16; this
   layer's keys are the `heads` first of the stride from `keys` on, its values from `values` on.
   What each packed token may see is a prefix (m positions of its pages) and a text (its own pages). */
#include "kernels.h"
#include "queries.h"
#include "threads.h"

#define MOST 128    /* tokens of one task */
#define TOGETHER 16 /* heads of one piece of work at most */
#define FETCH 8192  /* bytes that are fetched before they are read */

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

/* Positions that lie side by side from place `within` of a page on, of `length` that are left. */
INLINE long run_from(long page, long within, long length)
{
    long side = page - within < RUN ? page - within : RUN;
    return length < side ? length : side;
}

/* What is read behind a run: `length` positions from place `within` of the first page of `table` on; nothing if 0. */
typedef struct {
    const int64_t *table;
    long within, length;
} Onward;

/* `asked` queries, at most FEW, of each of `many` heads over the first `length` positions at `table`; limits[q] of
   them for query q, all of them if limits is 0; `onward` is read next. Mixes and queries lie by query, then by head. Page by page, the keys
   of all heads and then their values, as they lie in memory: read head by head it comes at half the speed, since no
   prefetcher follows. */
static void read_runs(const Step *step, Mix *const *mixes, const float *const *queries, long asked, long head,
                      long many, const int64_t *table, long length, const long *limits, Onward onward)
{
    long dim = step->head_dim, bf16 = step->bf16, size = dim * (bf16 ? 2 : 4), page = step->page, pitch = page * size;
    long ahead = (FETCH + pitch - 1) / pitch < many ? (FETCH + pitch - 1) / pitch : many;
    float scores[FEW * TOGETHER][RUN];
    for (long at = 0, count; at < length; at += count) {
        long within = at % page, seen[FEW];
        count = run_from(page, within, length - at);
        for (long q = 0; q < asked; q++) seen[q] = limits && limits[q] - at < count ? limits[q] - at : count;
        long after = at + count;
        Onward rest = after < length ? (Onward){table + after / page, after % page, length - after} : onward;
        const char *k = step->keys + ((table[at / page] * step->stride + head) * page + within) * size;
        const char *v = k + (step->values - step->keys), *then = k;
        long more = run_from(page, rest.within, rest.length);
        if (more) then = step->keys + ((*rest.table * step->stride + head) * page + rest.within) * size;
        for (long i = 0; i < many; i++) {
            Next next = {i + ahead < many ? k + (i + ahead) * pitch : v + (i + ahead - many) * pitch, count};
            for (long q = 0; q < asked; q++)
                if (seen[q] > 0)
                    score_run(scores[q * many + i], queries[q * many + i], k + i * pitch, seen[q], next, dim, bf16);
        }
        for (long i = 0; i < many; i++) {
            Next next = {v + (i + ahead) * pitch, count};
            if (i + ahead >= many) next = (Next){then + (i + ahead - many) * pitch, more};
            for (long q = 0; q < asked; q++)
                if (seen[q] > 0)
                    take_run(mixes[q * many + i], scores[q * many + i], v + i * pitch, seen[q], next, dim, bf16);
        }
    }
}

/* Asks for a key and a value that lie at `place`, into the level-2 cache. */
INLINE void fetch(const Step *step, long place, long size)
{
    for (long line = 0; line < size; line += 64) {
        __builtin_prefetch(step->keys + place + line, 0, 2);
        __builtin_prefetch(step->values + place + line, 0, 2);
    }
}

/* One head of several queries over `length` positions at `table`; limits[i] of them for query i, all of them if
   limits is 0. While the tiles of a block are computed the next one is fetched, some of its rows by each tile. */
static void read_blocks(const Step *step, Mix *mixes, const float *queries, int count, long head,
                        const int64_t *table, long length, const long *limits, long wide)
{
    long dim = step->head_dim, bf16 = step->bf16, size = dim * (bf16 ? 2 : 4), rows[BLOCK], then[BLOCK];
    long share = (BLOCK * QUERIES + count - 1) / count; /* rows of the next block that are fetched beside a tile */
    float keys[WIDEST * BLOCK], values[WIDEST * BLOCK];
    if (length > 0) find(step, head, table, 0, length, size, then);
    for (long at = 0; at < length; at += BLOCK) {
        long many = length - at < BLOCK ? length - at : BLOCK, fetched = 0;
        memcpy(rows, then, sizeof rows);
        turn_block(keys, values, step->keys, step->values, rows, many, dim, wide, bf16);
        if (at + BLOCK < length) find(step, head, table, at + BLOCK, length, size, then);
        else fetched = BLOCK;
        for (int first = 0; first < count; first += QUERIES) {
            for (long end = fetched + share; fetched < end && fetched < BLOCK; fetched++)
                fetch(step, then[fetched], size);
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

/* Heads head..head+many-1 of a task of `count` tokens, many * count <= MOST: mixes and queries by head, then by
   token. */
static void task(const Step *step, const int64_t *what, long head, long many)
{
    long dim = step->head_dim, wide = (dim + VL - 1) / VL * VL, first = what[0], m = what[3], limits[MOST];
    int count = (int)what[1], one_text = (int)what[4], runs = dim == wide;
    float queries[MOST * WIDEST], scale = 1.0f / sqrtf((float)dim);
    Mix mixes[MOST];
    for (long h = 0; h < many; h++)
        for (int i = 0; i < count; i++) {
            const float *query = step->qkv + ((first + i) * 3 * step->heads + head + h) * dim;
            float *scaled = queries + (h * count + i) * wide;
            Mix *mix = mixes + h * count + i;
            for (long d = 0; d < dim; d++) scaled[d] = query[d] * scale;
            mix->most = -INFINITY;
            mix->totals = (vec){};
            for (long d = 0; d < wide; d++) mix->sums[d] = 0.0f;
            limits[i] = step->tokens[(first + i) * 3 + 2];
        }
    const int64_t *tokens = step->tokens + first * 3, *prefix = step->tables + what[2], *text = step->tables + tokens[1];
    int few = runs && count <= (step->bf16 ? FEW_BF16 : FEW);
    for (long h = 0; h < many && !few; h++) {
        Mix *own = mixes + h * count;
        const float *asked = queries + h * count * wide;
        read_blocks(step, own, asked, count, head + h, prefix, m, 0, wide);
        if (one_text) read_blocks(step, own, asked, count, head + h, text, limits[count - 1], limits, wide);
        for (int i = 0; i < count && !one_text && !runs; i++)
            read_blocks(step, own + i, asked + i * wide, 1, head + h, step->tables + tokens[i * 3 + 1], limits[i], 0, wide);
    }
    for (int i = 0, some; i < count && runs && (few || !one_text); i += some) {
        Mix *own[FEW * TOGETHER];
        const float *asked[FEW * TOGETHER];
        some = few ? count : 1;
        for (long q = 0; q < some; q++)
            for (long h = 0; h < many; h++) {
                own[q * many + h] = mixes + h * count + i + q;
                asked[q * many + h] = queries + (h * count + i + q) * wide;
            }
        Onward first_text = {step->tables + tokens[i * 3 + 1], 0, limits[i]}, nothing = {0};
        if (few) read_runs(step, own, asked, some, head, many, prefix, m, 0, first_text);
        if (one_text) read_runs(step, own, asked, some, head, many, text, limits[count - 1], limits, nothing);
        for (long q = 0; q < some && !one_text; q++) {
            long last = i + q + 1 == count, other = i + q + !last;
            Onward other_text = {step->tables + tokens[other * 3 + 1], 0, last ? 0 : limits[other]};
            read_runs(step, own + q * many, asked + q * many, 1, head, many, step->tables + tokens[(i + q) * 3 + 1],
                      limits[i + q], 0, other_text);
        }
    }
    for (long h = 0; h < many; h++)
        for (int i = 0; i < count; i++) {
            float *out = step->out + ((first + i) * step->heads + head + h) * dim;
            const Mix *mix = mixes + h * count + i;
            float total = 0.0f;
            for (int lane = 0; lane < VL; lane++) total += mix->totals[lane];
            for (long d = 0; d < dim; d++) out[d] = mix->sums[d] / total;
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
    const int64_t *own = of->step.tasks + at / pieces * 5;
    for (long most = MOST / own[1], many; head < last; head += many) {
        many = last - head < most ? last - head : most;
        task(&of->step, own, head, many);
    }
}

/* Stores the step's n keys and values, then mixes; a piece of work is some heads of one task. */
void attend(const float *qkv, float *out, char *keys, char *values, long stride, long heads, long head_dim, long page,
            int bf16, const int64_t *tables, const int64_t *tokens, long n, const int64_t *tasks, long count,
            int threads)
{
    long most = count * heads / (threads * 2), some = most < 1 ? 1 : most > TOGETHER ? TOGETHER : most;
    Whole of = {{qkv, out, keys, values, stride, heads, head_dim, page, bf16, tables, tokens, tasks}, n, count, some};
    run_pieces(store, &of, n, n > 8 ? threads : 1);
    run_pieces(mix, &of, count * ((heads + some - 1) / some), threads);
}
