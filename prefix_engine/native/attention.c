/* Attention of one step over paged keys and values, with the softmax taken along the way (Milakov and
   Gimelshein 2018, "Online normalizer calculation for softmax").

   Memory of a layer is [heads, slots, head_dim], float32 or bfloat16. A page is `page` slots of every head.
   What each packed token may see is a prefix (m positions of its pages) and a text (its own pages). */
#include "vectors.h"

#define BLOCK 16   /* positions taken at once */
#define QUERIES 8  /* tokens of a tile that read the same positions */
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

INLINE float number(const char *row, long i, int bf16)
{
    if (!bf16) return ((const float *)row)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)row)[i] << 16;
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

/* Weighs `scores` of a block into the mix: returns nothing, leaves the weights in `scores`. */
INLINE void weigh(Mix *mix, float *scores, long dim)
{
    float most = mix->most, total = 0.0f;
    for (int j = 0; j < BLOCK; j++) most = scores[j] > most ? scores[j] : most;
    if (most > mix->most) {
        float shrink = exponential(mix->most - most);
        mix->most = most;
        mix->total *= shrink;
        for (long d = 0; d < dim; d++) mix->sums[d] *= shrink;
    }
    for (int j = 0; j < BLOCK; j++) scores[j] = exponential(scores[j] - most);
    for (int j = 0; j < BLOCK; j++) total += scores[j];
    mix->total += total;
}

/* One query over `count` <= BLOCK positions. */
INLINE void one_query(Mix *mix, const float *query, const char *k, const char *v, long count, const long dim,
                      const int bf16)
{
    long size = dim * (bf16 ? 2 : 4);
    float scores[BLOCK], sums[WIDEST];
    for (long j = 0; j < count; j++) {
        float score = 0.0f;
        for (long d = 0; d < dim; d++) score += query[d] * number(k + j * size, d, bf16);
        scores[j] = score;
    }
    for (long j = count; j < BLOCK; j++) scores[j] = -INFINITY;
    weigh(mix, scores, dim);
    for (long d = 0; d < dim; d++) sums[d] = mix->sums[d];
    for (long j = 0; j < count; j++)
        for (long d = 0; d < dim; d++) sums[d] += scores[j] * number(v + j * size, d, bf16);
    for (long d = 0; d < dim; d++) mix->sums[d] = sums[d];
}

/* A block that several queries read: keys turned to [dim, BLOCK], values to float32, once. */
INLINE void turn(float *keys, float *values, const char *k, const char *v, long count, const long dim, const int bf16)
{
    long size = dim * (bf16 ? 2 : 4);
    for (long d = 0; d < dim; d++)
        for (long j = 0; j < BLOCK; j++) keys[d * BLOCK + j] = j < count ? number(k + j * size, d, bf16) : 0.0f;
    for (long j = 0; j < BLOCK; j++)
        for (long d = 0; d < dim; d++) values[j * dim + d] = j < count ? number(v + j * size, d, bf16) : 0.0f;
}

/* Up to QUERIES queries over a turned block; query i sees its first counts[i] positions. */
INLINE void some_queries(Mix *mixes, const float *queries, const long *counts, const int number_of,
                         const float *keys, const float *values, const long dim)
{
    float scores[QUERIES][BLOCK] = {{0}};
    for (long d = 0; d < dim; d++)
        for (int i = 0; i < number_of; i++)
            for (int j = 0; j < BLOCK; j++) scores[i][j] += queries[i * dim + d] * keys[d * BLOCK + j];
    for (int i = 0; i < number_of; i++) {
        if (!counts[i]) continue;
        float *sums = mixes[i].sums;
        for (int j = 0; j < BLOCK; j++) scores[i][j] = j < counts[i] ? scores[i][j] : -INFINITY;
        weigh(mixes + i, scores[i], dim);
        for (int j = 0; j < BLOCK; j++)
            for (long d = 0; d < dim; d++) sums[d] += scores[i][j] * values[j * dim + d];
    }
}

/* `length` positions of the pages at `table`; limits[i] of them for query i, all of them if limits is 0. */
INLINE void absorb(const Step *step, Mix *mixes, const float *queries, int count, long head, const int64_t *table,
                   long length, const long *limits, const long dim, const int bf16)
{
    long size = dim * (bf16 ? 2 : 4);
    float keys[WIDEST * BLOCK], values[WIDEST * BLOCK];
    for (long at = 0; at < length;) {
        long within = at % step->page, left = step->page - within;
        long many = length - at < left ? length - at : left;
        many = many < BLOCK ? many : BLOCK;
        long place = (head * step->slots + table[at / step->page] * step->page + within) * size;
        if (count == 1)
            one_query(mixes, queries, step->keys + place, step->values + place, many, dim, bf16);
        else {
            turn(keys, values, step->keys + place, step->values + place, many, dim, bf16);
            for (int first = 0; first < count; first += QUERIES) {
                long counts[QUERIES];
                int some = count - first < QUERIES ? count - first : QUERIES, any = 0;
                for (int i = 0; i < some; i++) {
                    long seen = limits ? limits[first + i] - at : many;
                    counts[i] = seen < 0 ? 0 : seen < many ? seen : many;
                    any |= counts[i] > 0;
                }
                if (!any) continue;
                const float *from = queries + first * dim;
                if (some == QUERIES)
                    some_queries(mixes + first, from, counts, QUERIES, keys, values, dim);
                else
                    some_queries(mixes + first, from, counts, some, keys, values, dim);
            }
        }
        at += many;
    }
}

INLINE void task(const Step *step, const int64_t *what, long head, const long dim, const int bf16)
{
    long first = what[0], m = what[3], limits[MOST];
    int count = (int)what[1], one_text = (int)what[4];
    float queries[MOST * WIDEST], scale = 1.0f / sqrtf((float)dim);
    Mix mixes[MOST];
    for (int i = 0; i < count; i++) {
        const float *query = step->qkv + ((first + i) * 3 * step->heads + head) * dim;
        for (long d = 0; d < dim; d++) queries[i * dim + d] = query[d] * scale;
        mixes[i].most = -INFINITY;
        mixes[i].total = 0.0f;
        for (long d = 0; d < dim; d++) mixes[i].sums[d] = 0.0f;
        limits[i] = step->tokens[(first + i) * 3 + 2];
    }
    absorb(step, mixes, queries, count, head, step->tables + what[2], m, 0, dim, bf16);
    const int64_t *tokens = step->tokens + first * 3;
    if (one_text)
        absorb(step, mixes, queries, count, head, step->tables + tokens[1], limits[count - 1], limits, dim, bf16);
    else
        for (int i = 0; i < count; i++)
            absorb(step, mixes + i, queries + i * dim, 1, head, step->tables + tokens[i * 3 + 1], limits[i], 0, dim,
                   bf16);
    for (int i = 0; i < count; i++) {
        float *out = step->out + ((first + i) * step->heads + head) * dim;
        for (long d = 0; d < dim; d++) out[d] = mixes[i].sums[d] / mixes[i].total;
    }
}

/* Stores the step's n keys and values, then mixes; each (task, head) is one piece of work. */
void attend(const float *qkv, float *out, char *keys, char *values, long slots, long heads, long head_dim, long page,
            int bf16, const int64_t *tables, const int64_t *tokens, long n, const int64_t *tasks, long count,
            int threads)
{
    Step step = {qkv, out, keys, values, slots, heads, head_dim, page, bf16, tables, tokens, tasks};
    long size = head_dim * (bf16 ? 2 : 4);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long i = 0; i < n; i++)
            for (long head = 0; head < heads; head++) {
                const float *key = qkv + ((i * 3 + 1) * heads + head) * head_dim;
                long place = (head * slots + tokens[i * 3]) * size;
                keep(keys + place, key, head_dim, bf16);
                keep(values + place, key + heads * head_dim, head_dim, bf16);
            }
#pragma omp for schedule(dynamic, 1)
        for (long at = 0; at < count * heads; at++) {
            const int64_t *what = tasks + at / heads * 5;
            if (head_dim == 64 && bf16) task(&step, what, at % heads, 64, 1);
            else if (head_dim == 64) task(&step, what, at % heads, 64, 0);
            else task(&step, what, at % heads, head_dim, bf16);
        }
    }
}
