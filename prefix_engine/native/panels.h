/* What products of both formats share. A packed matrix lies in panels of NR columns, so that a tile reads it in
   one stream. A row's sums are taken in the same order whatever rows stand beside it and however many threads
   run: a row alone and the same row in a batch give the same bits. */
#pragma once
#include "threads.h"
#include "vectors.h"

#define AHEAD 32 /* rows of a panel that a tile alone fetches ahead of what it reads */

typedef struct {
    const float *w;
    long k, n, stride_k, stride_n;
    void *out;
    float *scales;
    int32_t *sums;
} Pack;

/* What follows the sums: gelu, and the residual that is added. */
INLINE void finish(float *c, const float *add, int columns, int gelu)
{
    if (gelu)
        for (int j = 0; j < columns; j++) c[j] = gelu_of(c[j]);
    if (add)
        for (int j = 0; j < columns; j++) c[j] += add[j];
}

/* Panels of one piece of work: enough pieces that threads end together, few enough to be worth the call. */
INLINE long together(long panels, int threads)
{
    long some = panels / (threads * 6);
    return some < 1 ? 1 : some > 8 ? 8 : some;
}
