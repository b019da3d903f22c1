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
    float most, sums[WIDEST];
    vec totals; /* of the weights, a part in each lane: added up at the end */
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
    float most = mix->most;
#pragma omp simd reduction(max : most)
    for (int j = 0; j < many; j++) most = scores[j] > most ? scores[j] : most;
    if (most > mix->most) {
        float shrink = exponential(mix->most - most);
        mix->most = most;
        mix->totals *= shrink;
        for (long d = 0; d < dim; d++) mix->sums[d] *= shrink;
    }
    for (int j = 0; j < many; j++) scores[j] = exponential(scores[j] - most);
    for (int j = 0; j < many; j += VL) mix->totals += *(const vec *)(scores + j);
}

/* The same for QUERIES queries together, so that what waits in one goes on in another; those that see nothing get
   weights of zero. */
INLINE void weigh_some(Mix *mixes, float (*scores)[BLOCK], const long *counts, const long wide)
{
    float tops[QUERIES];
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
            mixes[i].totals *= shrink;
            for (long d = 0; d < wide; d++) mixes[i].sums[d] *= shrink;
        }
    for (int i = 0; i < QUERIES; i++)
#pragma omp simd
        for (int j = 0; j < BLOCK; j++) scores[i][j] = exponential(scores[i][j] - tops[i]);
    for (int i = 0; i < QUERIES; i++)
        for (int j = 0; j < BLOCK; j += VL) mixes[i].totals += *(const vec *)(scores[i] + j);
}

/* Lanes of two vectors: number j of the first is j, of the second VL + j. */
INLINE vec shuffled(vec first, vec second, lane_numbers which)
{
#if defined(__clang__)
    vec found;
    for (int j = 0; j < VL; j++) found[j] = which[j] < VL ? first[which[j]] : second[which[j] - VL];
    return found;
#else
    return __builtin_shuffle(first, second, which);
#endif
}

/* Swaps blocks of `lanes` lanes between rows that are as far apart. */
INLINE void swap_blocks(vec *rows, const int lanes)
{
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
            rows[i] = shuffled(first, second, low);
            rows[i + lanes] = shuffled(first, second, high);
        }
}

/* VL vectors, rows to columns; each call has its number written out, so that its shuffles are known to the compiler. */
INLINE void transpose(vec *rows)
{
    swap_blocks(rows, 1);
    swap_blocks(rows, 2);
    if (VL > 4) swap_blocks(rows, 4);
    if (VL > 8) swap_blocks(rows, 8);
}

/* Makes one vector of each two rows that are `lanes` apart: sums of two lanes of the one, and of the other. */
INLINE void sum_pairs(vec *rows, const int lanes)
{
    lane_numbers same, other;
#pragma GCC unroll 16
    for (int j = 0; j < VL; j++) {
        same[j] = j & lanes ? VL + j : j;
        other[j] = same[j] ^ lanes;
    }
#pragma GCC unroll 8
    for (int i = 0; i < VL; i += 2 * lanes)
        rows[i] = shuffled(rows[i], rows[i + lanes], same) + shuffled(rows[i], rows[i + lanes], other);
}

/* The sum of each of VL vectors, in its own lane. */
INLINE vec sum_each(vec *rows)
{
    sum_pairs(rows, 1);
    sum_pairs(rows, 2);
    if (VL > 4) sum_pairs(rows, 4);
    if (VL > 8) sum_pairs(rows, 8);
    return rows[0];
}

/* bfloat16 is taken two numbers to a word where a row is whole words of whole vectors: to shift them apart needs no
   shuffle, of which a processor does one at a time. Numbers with even places come first then, those with odd ones behind. */
INLINE int by_words(const long dim, const int bf16) { return bf16 && dim % (2 * VL) == 0; }

/* Numbers d..d+2*VL-1 of a row: with even places, and with odd ones. */
INLINE void split(const char *row, long d, vec *even, vec *odd)
{
    words both = *(const words *)(row + d * 2), low = both << 16, high = both & 0xffff0000;
    memcpy(even, &low, sizeof *even);
    memcpy(odd, &high, sizeof *odd);
}

/* Two vectors of numbers one after another, to even and odd places; and back. */
INLINE void part(vec *two)
{
    lane_numbers even, odd;
#pragma GCC unroll 16
    for (int j = 0; j < VL; j++) {
        even[j] = 2 * j;
        odd[j] = 2 * j + 1;
    }
    vec first = two[0], second = two[1];
    two[0] = shuffled(first, second, even);
    two[1] = shuffled(first, second, odd);
}

INLINE void join(vec *two)
{
    lane_numbers low, high;
#pragma GCC unroll 16
    for (int j = 0; j < VL; j++) {
        low[j] = (j & 1 ? VL : 0) + j / 2;
        high[j] = low[j] + VL / 2;
    }
    vec first = two[0], second = two[1];
    two[0] = shuffled(first, second, low);
    two[1] = shuffled(first, second, high);
}

/* The sum of products of a row with what is asked, vector by vector; see `by_words`. */
INLINE vec products(const vec *asked, const char *row, const long dim, const int bf16)
{
    vec sum = {};
    if (!by_words(dim, bf16))
        for (long d = 0; d < dim; d += VL) sum += asked[d / VL] * numbers(row, d, bf16);
    else
        for (long d = 0; d < dim; d += 2 * VL) {
            vec even, odd;
            split(row, d, &even, &odd);
            sum += asked[d / VL] * even;
            sum += asked[d / VL + 1] * odd;
        }
    return sum;
}

/* At most RUN rows that lie side by side, and are read soon. */
typedef struct {
    const char *rows;
    long count;
} Next;

/* Fetches row j of them into the level-2 cache: the first level would not hold them beside what is read now. */
INLINE void fetch_next(Next next, long j, long size)
{
    if (j >= next.count) return;
    for (long at = 0; at < size; at += 64) __builtin_prefetch(next.rows + j * size + at, 0, 2);
}

/* Scores of one query with count <= RUN keys that lie side by side, -infinity behind them; dim is a multiple of
   VL. `next` is fetched meanwhile. */
INLINE void scores_of_run(float *scores, const float *query, const char *k, long count, Next next, const long dim,
                          const int bf16)
{
    long size = dim * (bf16 ? 2 : 4);
    vec asked[WIDEST / VL];
    for (long d = 0; d < dim; d += VL) asked[d / VL] = *(const vec *)(query + d);
    for (long d = 0; d < dim && by_words(dim, bf16); d += 2 * VL) part(asked + d / VL);
    for (int first = 0; first < RUN; first += VL) {
        vec sums[VL];
#pragma GCC unroll 16
        for (int j = 0; j < VL; j++) {
            const char *row = k + (first + j < count ? first + j : count - 1) * size;
            sums[j] = products(asked, row, dim, bf16);
            fetch_next(next, first + j, size);
        }
        *(vec *)(scores + first) = sum_each(sums);
    }
    for (long j = count; j < RUN; j++) scores[j] = -INFINITY;
}

/* Adds the values of a run by their weights; `next` is fetched meanwhile. */
INLINE void add_run(Mix *mix, const float *weights, const char *v, long count, Next next, const long dim,
                    const int bf16)
{
    long size = dim * (bf16 ? 2 : 4);
    for (long d = 0; d < dim; d += VL * PAIR) {
        vec sums[PAIR] = {};
        for (int i = 0; i < PAIR && d + i * VL < dim; i++) sums[i] = *(vec *)(mix->sums + d + i * VL);
        for (int i = 0; i < PAIR && by_words(dim, bf16) && d + i * VL < dim; i += 2) part(sums + i);
        for (long j = 0; j < count; j++) {
            vec weight = weights[j] - (vec){};
            if (!by_words(dim, bf16))
                for (int i = 0; i < PAIR && d + i * VL < dim; i++)
                    sums[i] += weight * numbers(v + j * size, d + i * VL, bf16);
            else
                for (int i = 0; i < PAIR && d + i * VL < dim; i += 2) {
                    vec even, odd;
                    split(v + j * size, d + i * VL, &even, &odd);
                    sums[i] += weight * even;
                    sums[i + 1] += weight * odd;
                }
            if (!d) fetch_next(next, j, size);
        }
        for (long j = count; j < next.count && !d; j++) fetch_next(next, j, size);
        for (int i = 0; i < PAIR && by_words(dim, bf16) && d + i * VL < dim; i += 2) join(sums + i);
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

static void score_run(float *scores, const float *query, const char *k, long count, Next next, long dim, int bf16)
{
#define SCORE(known_dim, known_bf16) scores_of_run(scores, query, k, count, next, known_dim, known_bf16)
    FOR_EACH_KIND(SCORE);
}

static void take_run(Mix *mix, float *scores, const char *v, long count, Next next, long dim, int bf16)
{
    if (dim == 64) weigh(mix, scores, RUN, 64);
    else weigh(mix, scores, RUN, dim);
#define ADD(known_dim, known_bf16) add_run(mix, scores, v, count, next, known_dim, known_bf16)
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
