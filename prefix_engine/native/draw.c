/* A token of each row by temperature, top_k and top_p, as `sampling.draw` and `nucleus` of Python draw it: the same
   rules in one pass over the logits, and one over the places of those buckets in which something ends. */
#include <stdlib.h>

#include "threads.h"
#include "vectors.h"

#define BUCKETS 1024
#define DEEPEST 40.0    /* a token of e^-40 of the best one's probability and less lies in the last bucket */
#define FLATTEST 1e-290 /* so that the width of a bucket does not underflow */
#define SPAN 256        /* tokens whose shares are computed at a time */

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
    float below; /* the best logit, in float32: 0 or less; logits that differ by less than its rounding are equal */
    int32_t id;
} Token;

typedef struct {
    const float *logits;
    long columns;
    float most;
    double temperature;
    double mass[BUCKETS]; /* shares of a bucket and of all before it, of which the best token has 1 */
    long count[BUCKETS];  /* tokens, likewise */
    uint16_t *bucket;     /* of each token */
} Row;

typedef struct {
    Token *tokens; /* best first, of equals the lower id first */
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

/* Of `many` tokens from `at` on: logits below the best one over temperature, and their shares. */
static void shares(const Row *row, long at, long many, double *below, double *out)
{
    const float *logits = row->logits + at;
    const float most = row->most;
    const double temperature = row->temperature;
#pragma omp simd
    for (long i = 0; i < many; i++) {
        below[i] = (double)(logits[i] - most) / temperature;
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
        for (long i = 0; i < many; i++) total += part[i];
        edges[s] = total;
    }
    /* The product may round up to the last edge, behind which only tokens of probability 0 lie. */
    double at = point * total < nextafter(total, 0.0) ? point * total : nextafter(total, 0.0);
    long s = first(edges, spans, at, 0), many = row->columns - s * SPAN < SPAN ? row->columns - s * SPAN : SPAN;
    double sum = s ? edges[s - 1] : 0.0;
    free(edges);
    shares(row, s * SPAN, many, below, part);
    long i = 0;
    while (i < many - 1 && (sum += part[i]) <= at) i++;
    return s * SPAN + i;
}

/* Counts all tokens into buckets by their logit, best first; whether there was memory. */
static int count_tokens(Row *row)
{
    float least = row->most;
#pragma omp simd reduction(min : least)
    for (long i = 0; i < row->columns; i++) least = row->logits[i] < least ? row->logits[i] : least;
    double depth = (double)(row->most - least) / row->temperature, below[SPAN], part[SPAN];
    depth = depth > FLATTEST ? depth : FLATTEST;
    double slope = (BUCKETS - 1) / (depth < DEEPEST ? depth : DEEPEST);
    if (!(row->bucket = malloc(row->columns * sizeof *row->bucket))) return 0;
    for (long at = 0; at < row->columns; at += SPAN) {
        long many = row->columns - at < SPAN ? row->columns - at : SPAN;
        int32_t places[SPAN];
        shares(row, at, many, below, part);
#pragma omp simd
        for (long i = 0; i < many; i++) {
            double deep = -below[i] * slope;
            places[i] = (int32_t)(deep < BUCKETS - 1 ? deep : BUCKETS - 1);
        }
        for (long i = 0; i < many; i++) {
            row->bucket[at + i] = (uint16_t)places[i];
            row->mass[places[i]] += part[i];
            row->count[places[i]]++;
        }
    }
    for (int b = 1; b < BUCKETS; b++) {
        row->mass[b] += row->mass[b - 1];
        row->count[b] += row->count[b - 1];
    }
    return 1;
}

static int better(const void *one, const void *other)
{
    const Token *a = one, *b = other;
    if (a->below != b->below) return a->below > b->below ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

/* The tokens of bucket `b` in order; whether there was memory. */
static int open_bucket(const Row *row, long b, Bucket *found)
{
    long count = row->count[b] - (b ? row->count[b - 1] : 0);
    double sum = b ? row->mass[b - 1] : 0.0;
    found->count = 0;
    found->tokens = malloc((count + 1) * sizeof *found->tokens);
    found->edges = malloc((count + 1) * sizeof *found->edges);
    if (!found->tokens || !found->edges) return 0;
    for (long i = 0; i < row->columns && found->count < count; i++)
        if (row->bucket[i] == b) found->tokens[found->count++] = (Token){row->logits[i] - row->most, (int32_t)i};
    qsort(found->tokens, count, sizeof *found->tokens, better);
    for (long i = 0; i < count; i++)
        found->edges[i] = sum += power((double)found->tokens[i].below / row->temperature);
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
        token = bucket.tokens[first(bucket.edges, bucket.count, at < end ? at : end, 0)].id;
    }
    close_bucket(&bucket);
    return token;
}

static void draw_row(const void *what, long at)
{
    const Draws *of = what;
    const Wish *wish = of->wishes + at;
    const float *logits = of->logits + of->rows[at] * of->columns;
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (long i = 0; i < of->columns; i++) most = logits[i] > most ? logits[i] : most;
    Row row = {.logits = logits, .columns = of->columns, .most = most, .temperature = wish->temperature};
    if (!wish->top_k && wish->top_p >= 1.0) {
        of->found[at] = by_id(&row, wish->point);
        return;
    }
    of->found[at] = count_tokens(&row) ? by_rank(&row, wish) : -1;
    free(row.bucket);
}

/* logits [*, columns], of them `rows` [n] with their wishes [n, 4] -> found [n] */
void draw_tokens(const float *logits, long columns, const int64_t *rows, const double *wishes, long n, int64_t *found,
                 int threads)
{
    Draws of = {logits, columns, rows, (const Wish *)wishes, found};
    run_pieces(draw_row, &of, n, threads);
}
