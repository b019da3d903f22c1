/* Attention of one step over paged keys and values, with the softmax taken along the way (Milakov and
   Gimelshein 2018, "Online normalizer calculation for softmax").

   Memory of a layer is [heads, slots, head_dim], float32 or bfloat16. A page is `page` slots of every head.
   What each packed token may see is a prefix (m positions of its pages) and a text (its own pages). */
#include "threads.h"
#include "vectors.h"

#define BLOCK 32   /* positions taken at once */
#define NB (BLOCK / VL)
#define QUERIES 8  /* tokens of a tile that read the same positions */
#define PAIR 4     /* of them whose sums are in registers at once */
#define FEW 3      /* queries that are not worth a tile */
#define MOST 64    /* tokens of one task */
#define WIDEST 256 /* largest head_dim */

typedef struct {
    const float *qkv; /* [n, 3, heads, head_dim] */
    float *out;       /* [n, heads, head_dim] */
    char *keys, *values;
    long slots, heads, head_dim, page, bf16;
    const int64_t *tables;  /* page numbers of prefixes and texts, one list after the other */
    const int64_t *tokens;  /* [n, 3]: slot of its key and value, place of its text in tables, its text's length */
    const int64_t *tasks;   /* [count, 5]: first token, tokens, place of the prefix in tables, m, one text */
} Step;

typedef struct {
    float most, total, sums[WIDEST];
} Mix;

typedef uint16_t halves __attribute__((vector_size(VL * 2), aligned(2)));
typedef uint32_t words __attribute__((vector_size(VL * 4), aligned(4)));
typedef int32_t lane_numbers __attribute__((vector_size(VL * 4)));

/* Numbers d..d+VL-1 of a row in memory. */
INLINE vec numbers(const char *row, long d, int bf16)
{
    if (!bf16) return *(const vec *)(row + d * 4);
    words bits = __builtin_convertvector(*(const halves *)(row + d * 2), words) << 16;
    vec values;
    memcpy(&values, &bits, sizeof values);
    return values;
}

INLINE float number(const char *row, long d, int bf16)
{
    if (!bf16) return ((const float *)row)[d];
    uint32_t bits = (uint32_t)((const uint16_t *)row)[d] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

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

/* Takes the scores of a block into a mix: leaves their weights in `scores`, to be summed by the caller. */
INLINE void weigh(Mix *mix, float *scores, long dim)
{
    float most = mix->most, total = 0.0f;
#pragma omp simd reduction(max : most)
    for (int j = 0; j < BLOCK; j++) most = scores[j] > most ? scores[j] : most;
    if (most > mix->most) {
        float shrink = exponential(mix->most - most);
        mix->most = most;
        mix->total *= shrink;
        for (long d = 0; d < dim; d++) mix->sums[d] *= shrink;
    }
    for (int j = 0; j < BLOCK; j++) scores[j] = exponential(scores[j] - most);
#pragma omp simd reduction(+ : total)
    for (int j = 0; j < BLOCK; j++) total += scores[j];
    mix->total += total;
}

/* VL vectors, rows to columns, in log2(VL) rounds that swap blocks of 1, 2, 4, ... lanes. */
INLINE void transpose(vec *rows)
{
#if defined(__clang__)
    vec columns[VL];
    for (int i = 0; i < VL; i++)
        for (int j = 0; j < VL; j++) columns[j][i] = rows[i][j];
    memcpy(rows, columns, sizeof columns);
#else
#pragma GCC unroll 4
    for (int lanes = 1; lanes < VL; lanes *= 2) {
        lane_numbers low, high;
#pragma GCC unroll 16
        for (int j = 0; j < VL; j++) {
            low[j] = j & lanes ? VL + j - lanes : j;
            high[j] = j & lanes ? VL + j : j + lanes;
        }
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++)
            if (!(i & lanes)) {
                vec first = rows[i], second = rows[i + lanes];
                rows[i] = __builtin_shuffle(first, second, low);
                rows[i + lanes] = __builtin_shuffle(first, second, high);
            }
    }
#endif
}

/* One query over the positions at `rows`, count <= BLOCK; dim is a multiple of VL. What is read after them is
   fetched into the level-2 cache meanwhile: the first level would not hold both. */
INLINE void one_query(Mix *mix, const float *query, const char *k, const char *v, const long *rows, long count,
                      const long *next, const long dim, const int bf16)
{
    long size = dim * (bf16 ? 2 : 4);
    float scores[BLOCK];
    for (int part = 0; part < BLOCK; part += VL) {
        vec sums[VL], score = {};
        if (part >= count) {
            *(vec *)(scores + part) = -INFINITY - (vec){};
            continue;
        }
#pragma GCC unroll 16
        for (int j = 0; j < VL; j++) {
            sums[j] = *(const vec *)query * numbers(k + rows[part + j], 0, bf16);
            for (long d = VL; d < dim; d += VL)
                sums[j] += *(const vec *)(query + d) * numbers(k + rows[part + j], d, bf16);
            for (long at = 0; at < size; at += 64) __builtin_prefetch(k + next[part + j] + at, 0, 2);
        }
        transpose(sums);
#pragma GCC unroll 16
        for (int j = 0; j < VL; j++) score += sums[j];
        *(vec *)(scores + part) = score;
    }
    for (long j = count; j < BLOCK; j++) scores[j] = -INFINITY;
    weigh(mix, scores, dim);
    for (long d = 0; d < dim; d += VL * PAIR) {
        vec sums[PAIR] = {};
        for (int i = 0; i < PAIR && d + i * VL < dim; i++) sums[i] = *(vec *)(mix->sums + d + i * VL);
        for (long j = 0; j < count; j++) {
            vec weight = scores[j] - (vec){};
            for (int i = 0; i < PAIR && d + i * VL < dim; i++)
                sums[i] += weight * numbers(v + rows[j], d + i * VL, bf16);
            if (!d)
                for (long at = 0; at < size; at += 64) __builtin_prefetch(v + next[j] + at, 0, 2);
        }
        for (int i = 0; i < PAIR && d + i * VL < dim; i++) *(vec *)(mix->sums + d + i * VL) = sums[i];
    }
}

/* A block that several queries read: keys turned to [dim, BLOCK], values to float32 [BLOCK, wide], once. What is
   behind its end is zero, so that a weight of zero never meets a NaN. */
INLINE void turn(float *keys, float *values, const char *k, const char *v, const long *rows, long count,
                 const long dim, const long wide, const int bf16)
{
    for (long j = 0; j < BLOCK; j++) {
        for (long d = 0; d + VL <= dim; d += VL)
            *(vec *)(values + j * wide + d) = j < count ? numbers(v + rows[j], d, bf16) : (vec){};
        for (long d = dim / VL * VL; d < wide; d++)
            values[j * wide + d] = j < count && d < dim ? number(v + rows[j], d, bf16) : 0.0f;
    }
    for (long part = 0; part < BLOCK; part += VL) {
        for (long d = 0; d + VL <= dim; d += VL) {
            vec block[VL];
#pragma GCC unroll 16
            for (int j = 0; j < VL; j++)
                block[j] = part + j < count ? numbers(k + rows[part + j], d, bf16) : (vec){};
            transpose(block);
#pragma GCC unroll 16
            for (int j = 0; j < VL; j++) *(vec *)(keys + (d + j) * BLOCK + part) = block[j];
        }
        for (long d = dim / VL * VL; d < dim; d++)
            for (long j = part; j < part + VL; j++)
                keys[d * BLOCK + j] = j < count ? number(k + rows[j], d, bf16) : 0.0f;
    }
}

/* QUERIES queries over a turned block; query i sees its first counts[i] positions. */
INLINE void some_queries(Mix *mixes, const float *queries, const long *counts, const float *keys,
                         const float *values, const long dim, const long wide)
{
    float scores[QUERIES][BLOCK];
    vec sums[QUERIES][NB];
    for (int i = 0; i < QUERIES; i++)
        for (int j = 0; j < NB; j++) sums[i][j] = (vec){};
    for (long d = 0; d < dim; d++) {
        vec columns[NB];
        for (int j = 0; j < NB; j++) columns[j] = *(const vec *)(keys + d * BLOCK + j * VL);
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; i++)
            for (int j = 0; j < NB; j++) sums[i][j] += (queries[i * wide + d] - (vec){}) * columns[j];
    }
    for (int i = 0; i < QUERIES; i++) {
        for (int j = 0; j < NB; j++) *(vec *)(scores[i] + j * VL) = sums[i][j];
        if (counts[i] < BLOCK)
            for (int j = 0; j < BLOCK; j++) scores[i][j] = j < counts[i] ? scores[i][j] : -INFINITY;
        if (counts[i]) weigh(mixes + i, scores[i], wide);
        else memset(scores[i], 0, sizeof scores[i]);
    }
    for (int i = 0; i < QUERIES; i += PAIR)
        for (long d = 0; d < wide; d += VL) {
            vec mixed[PAIR];
            for (int q = 0; q < PAIR; q++) mixed[q] = *(vec *)(mixes[i + q].sums + d);
            for (int j = 0; j < BLOCK; j++) {
                vec value = *(const vec *)(values + j * wide + d);
#pragma GCC unroll 4
                for (int q = 0; q < PAIR; q++) mixed[q] += (scores[i + q][j] - (vec){}) * value;
            }
            for (int q = 0; q < PAIR; q++) *(vec *)(mixes[i + q].sums + d) = mixed[q];
        }
}

/* What does most of the work is compiled for GPT-2's head_dim in both formats, and once for any other. */
#define FOR_EACH_KIND(call)                                                                                            \
    if (dim == 64 && !bf16) call(64, 0);                                                                               \
    else if (dim == 64) call(64, 1);                                                                                   \
    else call(dim, bf16)

static void ask_one(Mix *mix, const float *query, const char *k, const char *v, const long *rows, long count,
                    const long *next, long dim, int bf16)
{
#define ASK(known_dim, known_bf16) one_query(mix, query, k, v, rows, count, next, known_dim, known_bf16)
    FOR_EACH_KIND(ASK);
}

static void turn_block(float *keys, float *values, const char *k, const char *v, const long *rows, long count,
                       long dim, long wide, int bf16)
{
#define TURN(known_dim, known_bf16)                                                                                    \
    turn(keys, values, k, v, rows, count, known_dim, known_dim == 64 ? 64 : wide, known_bf16)
    FOR_EACH_KIND(TURN);
}

static void ask_some(Mix *mixes, const float *queries, const long *counts, const float *keys, const float *values,
                     long dim, long wide)
{
    if (dim == 64) some_queries(mixes, queries, counts, keys, values, 64, 64);
    else some_queries(mixes, queries, counts, keys, values, dim, wide);
}

/* Where positions at..at+BLOCK-1 of a text of `length` lie in the memory of keys, and of values, in bytes; those
   behind its end lie at the last one. */
static void find(const Step *step, long head, const int64_t *table, long at, long length, long size, long *rows)
{
    long last = length - 1 < at + BLOCK - 1 ? length - 1 : at + BLOCK - 1, page = step->page, j = 0;
    for (long number = at / page, within = at % page; j + at <= last; number++, within = 0) {
        long place = (head * step->slots + table[number] * page + within) * size;
        for (; within < page && j + at <= last; within++, place += size) rows[j++] = place;
    }
    for (; j < BLOCK; j++) rows[j] = rows[j - 1];
}

/* `length` positions of the pages at `table`; limits[i] of them for query i, all of them if limits is 0. Those of
   the pages at `then` are read next. */
static void absorb(const Step *step, Mix *mixes, const float *queries, int count, long head, const int64_t *table,
                   long length, const long *limits, const int64_t *then, long then_length, long dim, long wide,
                   int bf16)
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
        else if (then_length) find(step, head, then, 0, then_length, size, next);
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
            if (any) ask_some(mixes + first, queries + first * wide, counts, keys, values, dim, wide);
        }
    }
}

static void task(const Step *step, const int64_t *what, long head)
{
    long dim = step->head_dim, bf16 = step->bf16;
    long first = what[0], m = what[3], limits[MOST];
    int count = (int)what[1], one_text = (int)what[4];
    long wide = (dim + VL - 1) / VL * VL;
    float queries[MOST * WIDEST], scale = 1.0f / sqrtf((float)dim);
    Mix mixes[MOST];
    if (count % QUERIES) memset(queries + count * wide, 0, (QUERIES - count % QUERIES) * wide * 4);
    for (int i = 0; i < count; i++) {
        const float *query = step->qkv + ((first + i) * 3 * step->heads + head) * dim;
        for (long d = 0; d < dim; d++) queries[i * wide + d] = query[d] * scale;
        mixes[i].most = -INFINITY;
        mixes[i].total = 0.0f;
        for (long d = 0; d < wide; d++) mixes[i].sums[d] = 0.0f;
        limits[i] = step->tokens[(first + i) * 3 + 2];
    }
    const int64_t *tokens = step->tokens + first * 3, *text = step->tables + tokens[1];
    absorb(step, mixes, queries, count, head, step->tables + what[2], m, 0, text, limits[0], dim, wide, bf16);
    if (one_text) absorb(step, mixes, queries, count, head, text, limits[count - 1], limits, 0, 0, dim, wide, bf16);
    for (int i = 0; i < count && !one_text; i++) {
        const int64_t *then = i + 1 < count ? step->tables + tokens[i * 3 + 4] : 0;
        absorb(step, mixes + i, queries + i * wide, 1, head, step->tables + tokens[i * 3 + 1], limits[i], 0, then,
               then ? limits[i + 1] : 0, dim, wide, bf16);
    }
    for (int i = 0; i < count; i++) {
        float *out = step->out + ((first + i) * step->heads + head) * dim;
        for (long d = 0; d < dim; d++) out[d] = mixes[i].sums[d] / mixes[i].total;
    }
}

typedef struct {
    Step step;
    long n, count;
} Whole;

static void store(const void *what, long i)
{
    const Step *of = &((const Whole *)what)->step;
    long size = of->head_dim * (of->bf16 ? 2 : 4);
    for (long head = 0; head < of->heads; head++) {
        const float *key = of->qkv + ((i * 3 + 1) * of->heads + head) * of->head_dim;
        long place = (head * of->slots + of->tokens[i * 3]) * size;
        keep(of->keys + place, key, of->head_dim, of->bf16);
        keep(of->values + place, key + of->heads * of->head_dim, of->head_dim, of->bf16);
    }
}

static void mix(const void *what, long at)
{
    const Step *of = &((const Whole *)what)->step;
    task(of, of->tasks + at / of->heads * 5, at % of->heads);
}

/* Stores the step's n keys and values, then mixes; each (task, head) is one piece of work. */
void attend(const float *qkv, float *out, char *keys, char *values, long slots, long heads, long head_dim, long page,
            int bf16, const int64_t *tables, const int64_t *tokens, long n, const int64_t *tasks, long count,
            int threads)
{
    Whole of = {{qkv, out, keys, values, slots, heads, head_dim, page, bf16, tables, tokens, tasks}, n, count};
    run_pieces(store, &of, n, n > 8 ? threads : 1);
    run_pieces(mix, &of, count * heads, threads);
}
