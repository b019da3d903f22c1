/* A token of each row by temperature, top_k and top_p, as `sampling.draw` and `nucleus` of Python draw it: the same
   rules in one pass over the logits, and one over the places of those buckets in which something ends. */
#include <float.h>
#include <stdlib.h>

#include "threads.h"
#include "vectors.h"

#define BUCKETS 1024
#define DEEPEST 40.0    /* a token of e^-40 of the best one's probability and less lies in the last bucket */
#define FLATTEST 1e-290 /* so that the width of a bucket does not underflow */
#define SPAN 256        /* tokens whose shares are computed at a time */
#define GLANCE 64       /* tokens looked at together for one of a bucket */

typedef struct {
    double temperature, top_k, top_p, point; /* top_k 0 and top_p from 1 on: all */
} Wish;

typedef struct {
    const float *logits;
    long columns;
    const int64_t *rows; /* that draw */
    const Wish *wishes;  /* theirs */
    int64_t *found;      /* theirs: a token, or -1: there was no memory */
} Draws;

typedef struct {
    const float *logits;
    long columns;
    float most;
    double per;            /* one over the temperature */
    double mass[BUCKETS];  /* shares of a bucket and of all before it, of which the best token has 1 */
    double other[BUCKETS]; /* so that two tokens of one bucket need not wait for each other; added to the first */
    long count[BUCKETS];   /* tokens, likewise; only for top_k */
    uint16_t *bucket;      /* of each token */
} Row;

typedef struct {
    uint64_t *tokens; /* see `ranked`, best first */
    double *edges; /* the share of each and of all before it, earlier buckets' too */
    long count;
} Bucket;

/* e^x for x <= 0 to a rounding or two; 0 where it is no normal number. The steps of ln 2 are Cephes'. */
INLINE double power(double x)
{
    double low = x < -708.0 ? -708.0 : x, whole = low * 1.4426950408889634 + 0x1.8p52, p = 1.0 / 6227020800.0;
    int64_t bits;
    memcpy(&bits, &whole, sizeof bits);
    whole -= 0x1.8p52;
    double r = low - whole * 6.93145751953125e-1 - whole * 1.42860682030941723212e-6;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t scale = ((uint64_t)bits << 52) + ((uint64_t)1023 << 52);
    double two;
    memcpy(&two, &scale, sizeof two);
    return x < -708.0 ? 0.0 : p * two;
}

/* A token as a number, less the better it is: before its id the bits of how far it is below the best logit, in float32
   (zero, or a negative number, whose bits grow as it falls); of equals the lower id is better. */
INLINE uint64_t ranked(float below, long id)
{
    uint32_t bits;
    memcpy(&bits, &below, sizeof bits);
    return (uint64_t)bits << 32 | (uint64_t)id;
}

static long id_of(uint64_t token)
{
    return (long)(token & 0xffffffff);
}

static float below_of(uint64_t token)
{
    uint32_t bits = (uint32_t)(token >> 32);
    float below;
    memcpy(&below, &bits, sizeof below);
    return below;
}

/* Rising; Shell's sort with Ciura's gaps, since a bucket is some dozens of tokens, and all of them where it must be. */
static void sort(uint64_t *numbers, long count)
{
    static const int gaps[] = {19930, 8858, 3937, 1750, 701, 301, 132, 57, 23, 10, 4, 1};
    for (size_t g = 0; g < sizeof gaps / sizeof *gaps; g++)
        for (long i = gaps[g]; i < count; i++) {
            uint64_t one = numbers[i];
            long to = i;
            for (; to >= gaps[g] && numbers[to - gaps[g]] > one; to -= gaps[g]) numbers[to] = numbers[to - gaps[g]];
            numbers[to] = one;
        }
}

/* Of `many` tokens from `at` on: logits below the best one over temperature, and their shares. */
static void shares(const Row *row, long at, long many, double *below, double *out)
{
    const float *logits = row->logits + at;
    const float most = row->most;
    const double per = row->per;
#pragma omp simd
    for (long i = 0; i < many; i++) {
        below[i] = (double)(logits[i] - most) * per;
        out[i] = power(below[i]);
    }
}

/* The first place of `count` at which the rising numbers are more than `at`, or, if `equal`, as much; else the last. */
static long first(const double *numbers, long count, double at, int equal)
{
    long low = 0, high = count - 1;
    while (low < high) {
        long middle = (low + high) / 2;
        if (numbers[middle] > at || (equal && numbers[middle] == at)) high = middle;
        else low = middle + 1;
    }
    return low;
}

/* By id, from all tokens: sums of spans, then inside one. */
static int64_t by_id(const Row *row, double point)
{
    long spans = (row->columns + SPAN - 1) / SPAN;
    double *edges = malloc(spans * sizeof *edges), below[SPAN], part[SPAN], total = 0.0;
    if (!edges) return -1;
    for (long s = 0; s < spans; s++) {
        long many = row->columns - s * SPAN < SPAN ? row->columns - s * SPAN : SPAN;
        shares(row, s * SPAN, many, below, part);
        double whole = 0.0;
#pragma omp simd reduction(+ : whole)
        for (long i = 0; i < many; i++) whole += part[i];
        edges[s] = total += whole;
    }
    /* The product may round up to the last edge, behind which only tokens of probability 0 lie. */
    double at = point * total < nextafter(total, 0.0) ? point * total : nextafter(total, 0.0);
    long s = first(edges, spans, at, 0), many = row->columns - s * SPAN < SPAN ? row->columns - s * SPAN : SPAN;
    double sum = s ? edges[s - 1] : 0.0;
    free(edges);
    shares(row, s * SPAN, many, below, part);
    long i = 0;
    while (i < many - 1 && (sum += part[i]) <= at) i++;
    while (i && part[i] == 0.0) i--; /* added one by one they may be a little less than by lanes */
    return s * SPAN + i;
}

/* Adds up the shares of all tokens in buckets by their logit, best first, and if `counted` the tokens; `least` is the
   least logit. Whether there was memory. */
static int fill_buckets(Row *row, float least, int counted)
{
    double depth = (double)(row->most - least) * row->per, below[SPAN], part[SPAN];
    depth = depth > FLATTEST ? depth : FLATTEST;
    double slope = (BUCKETS - 1) / (depth < DEEPEST ? depth : DEEPEST);
    if (!(row->bucket = malloc(row->columns * sizeof *row->bucket))) return 0;
    for (long at = 0; at < row->columns; at += SPAN) {
        long many = row->columns - at < SPAN ? row->columns - at : SPAN;
        uint16_t *places = row->bucket + at;
        shares(row, at, many, below, part);
#pragma omp simd
        for (long i = 0; i < many; i++) {
            double deep = -below[i] * slope;
            places[i] = (uint16_t)(int32_t)(deep < BUCKETS - 1 ? deep : BUCKETS - 1);
        }
        long i = 0;
        for (; i + 1 < many; i += 2) {
            row->mass[places[i]] += part[i];
            row->other[places[i + 1]] += part[i + 1];
        }
        if (i < many) row->mass[places[i]] += part[i];
        for (i = 0; counted && i < many; i++) row->count[places[i]]++;
    }
    for (int b = 0; b < BUCKETS; b++) {
        row->mass[b] += row->other[b] + (b ? row->mass[b - 1] : 0.0);
        row->count[b] += b ? row->count[b - 1] : 0;
    }
    return 1;
}

/* How many of the numbers are `b`. */
static long matches(const uint16_t *numbers, long count, long b)
{
    const uint16_t wanted = (uint16_t)b;
    int found = 0;
#pragma omp simd reduction(+ : found)
    for (long i = 0; i < count; i++) found += numbers[i] == wanted;
    return found;
}

/* The tokens of bucket `b` in order; whether there was memory. */
static int open_bucket(const Row *row, long b, Bucket *found)
{
    long count = matches(row->bucket, row->columns, b);
    double sum = b ? row->mass[b - 1] : 0.0;
    found->count = 0;
    found->tokens = malloc((count + 1) * sizeof *found->tokens);
    found->edges = malloc((count + 1) * sizeof *found->edges);
    if (!found->tokens || !found->edges) return 0;
    for (long at = 0; at < row->columns && found->count < count; at += GLANCE) {
        long end = row->columns - at < GLANCE ? row->columns : at + GLANCE;
        if (!matches(row->bucket + at, end - at, b)) continue;
        for (long i = at; i < end; i++)
            if (row->bucket[i] == b) /* + 0: never -0, which would rank behind 0 */
                found->tokens[found->count++] = ranked(row->logits[i] - row->most + 0.0f, i);
    }
    sort(found->tokens, count);
    for (long i = 0; i < count; i++)
        found->edges[i] = sum += power((double)below_of(found->tokens[i]) * row->per);
    return 1;
}

static void close_bucket(Bucket *bucket)
{
    free(bucket->tokens);
    free(bucket->edges);
}

/* Best first, from what top_k and top_p leave; see `nucleus.drawn`. */
static int64_t by_rank(Row *row, const Wish *wish)
{
    double whole = row->mass[BUCKETS - 1];
    long last = first(row->mass, BUCKETS, whole, 1), top_k = (long)wish->top_k;
    Bucket bucket;
    if (top_k && top_k < row->columns) {
        last = 0;
        while (row->count[last] < top_k) last++;
        int made = open_bucket(row, last, &bucket);
        if (made) whole = bucket.edges[top_k - (last ? row->count[last - 1] : 0) - 1];
        close_bucket(&bucket);
        if (!made) return -1;
    }
    if (wish->top_p < 1.0) {
        long end = first(row->mass, BUCKETS, wish->top_p * whole, 1);
        last = end < last ? end : last;
        int made = open_bucket(row, last, &bucket);
        if (made && bucket.count) {
            double edge = bucket.edges[first(bucket.edges, bucket.count, wish->top_p * whole, 1)];
            whole = edge < whole ? edge : whole;
        }
        close_bucket(&bucket);
        if (!made) return -1;
    }
    double at = wish->point * whole < nextafter(whole, 0.0) ? wish->point * whole : nextafter(whole, 0.0);
    long place = first(row->mass, BUCKETS, at, 0);
    int64_t token = -1;
    if (open_bucket(row, place < last ? place : last, &bucket) && bucket.count) {
        double end = nextafter(bucket.edges[bucket.count - 1], 0.0);
        token = id_of(bucket.tokens[first(bucket.edges, bucket.count, at < end ? at : end, 0)]);
    }
    close_bucket(&bucket);
    return token;
}

static void draw_row(const void *what, long at)
{
    const Draws *of = what;
    const Wish *wish = of->wishes + at;
    const float *logits = of->logits + of->rows[at] * of->columns;
    float most = -INFINITY, least = INFINITY;
#pragma omp simd reduction(max : most) reduction(min : least)
    for (long i = 0; i < of->columns; i++) {
        most = logits[i] > most ? logits[i] : most;
        least = logits[i] < least ? logits[i] : least;
    }
    double per = 1.0 / wish->temperature;
    Row row = {.logits = logits, .columns = of->columns, .most = most, .per = per < DBL_MAX ? per : DBL_MAX};
    if (!wish->top_k && wish->top_p >= 1.0) {
        of->found[at] = by_id(&row, wish->point);
        return;
    }
    of->found[at] = fill_buckets(&row, least, wish->top_k > 0) ? by_rank(&row, wish) : -1;
    free(row.bucket);
}

/* logits [*, columns], of them `rows` [n] with their wishes [n, 4] -> found [n] */
void draw_tokens(const float *logits, long columns, const int64_t *rows, const double *wishes, long n, int64_t *found,
                 int threads)
{
    Draws of = {logits, columns, rows, (const Wish *)wishes, found};
    run_pieces(draw_row, &of, n, threads);
}
