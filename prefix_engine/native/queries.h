/* What a query takes from a block of keys and values, with the softmax along the way (Milakov and Gimelshein
   2018, "Online normalizer calculation for softmax"). A row of memory is head_dim numbers, float32 or bfloat16. */
#pragma once
#include "vectors.h"

#define BLOCK 32   /* positions taken at once by a tile */
#define RUN 16     /* positions taken at once by one query: side by side in memory */
#define NB (BLOCK / VL)
#define QUERIES 8  /* tokens of a tile that read the same positions */
#define PAIR 4     /* of them whose sums are in registers at once */
#define FEW 12     /* queries that are not worth a tile */
#define FEW_BF16 6 /* the same where each would widen the numbers for itself */
#define WIDEST 256 /* largest head_dim */

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

/* Takes `many` scores into a mix: leaves their weights in `scores`, to be summed by the caller. */
INLINE void weigh(Mix *mix, float *scores, const int many, long dim)
{
    float most = mix->most, total = 0.0f;
#pragma omp simd reduction(max : most)
    for (int j = 0; j < many; j++) most = scores[j] > most ? scores[j] : most;
    if (most > mix->most) {
        float shrink = exponential(mix->most - most);
        mix->most = most;
        mix->total *= shrink;
        for (long d = 0; d < dim; d++) mix->sums[d] *= shrink;
    }
    for (int j = 0; j < many; j++) scores[j] = exponential(scores[j] - most);
#pragma omp simd reduction(+ : total)
    for (int j = 0; j < many; j++) total += scores[j];
    mix->total += total;
}

/* The same for QUERIES queries together, so that what waits in one goes on in another; those that see nothing get
   weights of zero. */
INLINE void weigh_some(Mix *mixes, float (*scores)[BLOCK], const long *counts, const long wide)
{
    float tops[QUERIES], totals[QUERIES];
    for (int i = 0; i < QUERIES; i++) {
        float most = mixes[i].most;
#pragma omp simd reduction(max : most)
        for (int j = 0; j < BLOCK; j++) most = scores[i][j] > most ? scores[i][j] : most;
        tops[i] = counts[i] ? most : INFINITY;
    }
    for (int i = 0; i < QUERIES; i++)
        if (counts[i] && tops[i] > mixes[i].most) {
            float shrink = exponential(mixes[i].most - tops[i]);
            mixes[i].most = tops[i];
            mixes[i].total *= shrink;
            for (long d = 0; d < wide; d++) mixes[i].sums[d] *= shrink;
        }
    for (int i = 0; i < QUERIES; i++)
#pragma omp simd
        for (int j = 0; j < BLOCK; j++) scores[i][j] = exponential(scores[i][j] - tops[i]);
    for (int i = 0; i < QUERIES; i++) {
        float total = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int j = 0; j < BLOCK; j++) total += scores[i][j];
        totals[i] = total;
    }
    for (int i = 0; i < QUERIES; i++) mixes[i].total += totals[i];
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

/* Scores of one query with count <= RUN keys that lie side by side, -infinity behind them; dim is a multiple of
   VL. As much from `then` on is fetched into the level-2 cache meanwhile: the first level would not hold both. */
INLINE void scores_of_run(float *scores, const float *query, const char *k, long count, const char *then,
                          const long dim, const int bf16)
{
    long size = dim * (bf16 ? 2 : 4);
    for (int part = 0; part < RUN; part += VL) {
        vec sums[VL], score = {};
#pragma GCC unroll 16
        for (int j = 0; j < VL; j++) {
            const char *row = k + (part + j < count ? part + j : count - 1) * size;
            sums[j] = *(const vec *)query * numbers(row, 0, bf16);
            for (long d = VL; d < dim; d += VL) sums[j] += *(const vec *)(query + d) * numbers(row, d, bf16);
            for (long at = 0; at < size; at += 64) __builtin_prefetch(then + (part + j) * size + at, 0, 2);
        }
        transpose(sums);
#pragma GCC unroll 16
        for (int j = 0; j < VL; j++) score += sums[j];
        *(vec *)(scores + part) = score;
    }
    for (long j = count; j < RUN; j++) scores[j] = -INFINITY;
}

/* Adds the values of a run by their weights. */
INLINE void add_run(Mix *mix, const float *weights, const char *v, long count, const char *then, const long dim,
                    const int bf16)
{
    long size = dim * (bf16 ? 2 : 4);
    for (long d = 0; d < dim; d += VL * PAIR) {
        vec sums[PAIR] = {};
        for (int i = 0; i < PAIR && d + i * VL < dim; i++) sums[i] = *(vec *)(mix->sums + d + i * VL);
        for (long j = 0; j < count; j++) {
            vec weight = weights[j] - (vec){};
            for (int i = 0; i < PAIR && d + i * VL < dim; i++)
                sums[i] += weight * numbers(v + j * size, d + i * VL, bf16);
            if (!d)
                for (long at = 0; at < size; at += 64) __builtin_prefetch(then + j * size + at, 0, 2);
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
    }
    weigh_some(mixes, scores, counts, wide);
    for (long d = 0; d < wide; d += VL) {
        vec mixed[QUERIES];
#pragma GCC unroll 8
        for (int q = 0; q < QUERIES; q++) mixed[q] = *(vec *)(mixes[q].sums + d);
        for (int j = 0; j < BLOCK; j++) {
            vec value = *(const vec *)(values + j * wide + d);
#pragma GCC unroll 8
            for (int q = 0; q < QUERIES; q++) mixed[q] += (scores[q][j] - (vec){}) * value;
        }
#pragma GCC unroll 8
        for (int q = 0; q < QUERIES; q++) *(vec *)(mixes[q].sums + d) = mixed[q];
    }
}

/* What does most of the work is compiled for GPT-2's head_dim in both formats, and once for any other. */
#define FOR_EACH_KIND(call)                                                                                            \
    if (dim == 64 && !bf16) call(64, 0);                                                                               \
    else if (dim == 64) call(64, 1);                                                                                   \
    else call(dim, bf16)

static void score_run(float *scores, const float *query, const char *k, long count, const char *then, long dim,
                      int bf16)
{
#define SCORE(known_dim, known_bf16) scores_of_run(scores, query, k, count, then, known_dim, known_bf16)
    FOR_EACH_KIND(SCORE);
}

static void take_run(Mix *mix, float *scores, const char *v, long count, const char *then, long dim, int bf16)
{
    if (dim == 64) weigh(mix, scores, RUN, 64);
    else weigh(mix, scores, RUN, dim);
#define ADD(known_dim, known_bf16) add_run(mix, scores, v, count, then, known_dim, known_bf16)
    FOR_EACH_KIND(ADD);
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
