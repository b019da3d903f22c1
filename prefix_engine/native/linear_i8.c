/* Products of a few rows with a packed matrix in int8, [panels][ceil(k / 4)][NR][4]. */
#include "kernels.h"
#include "panels.h"
#if defined(__AVX512VNNI__) || defined(__AVX2__)
#include <immintrin.h>
#endif

static void pack_panel_i8(const void *what, long p)
{
    const Pack *of = what;
    long k4 = (of->k + 3) / 4;
    int8_t *out = (int8_t *)of->out + p * k4 * NR * 4;
    for (long j = 0; j < NR; j++) {
        const float *w = of->w + (p * NR + j) * of->stride_n;
        long k = p * NR + j < of->n ? of->k : 0;
        float most = 0.0f;
        for (long i = 0; i < k; i++) {
            float size = fabsf(w[i * of->stride_k]);
            most = size > most ? size : most;
        }
        float scale = most > 0.0f ? most / 127.0f : 1.0f;
        int32_t sum = 0;
        for (long i = 0; i < k4 * 4; i++) {
            int8_t q = i < k ? (int8_t)rintf(w[i * of->stride_k] / scale) : 0;
            sum += q;
            out[(i / 4 * NR + j) * 4 + i % 4] = q;
        }
        of->scales[p * NR + j] = scale;
        of->sums[p * NR + j] = sum * 128;
    }
}

/* int8: w [k, n] by its strides -> out [panels][k4][NR][4], one scale and one sum a column. k4 = ceil(k / 4) */
void pack_i8(const float *w, long k, long n, long stride_k, long stride_n, int8_t *out, float *scales,
             int32_t *sums, int threads)
{
    Pack of = {w, k, n, stride_k, stride_n, out, scales, sums};
    run_pieces(pack_panel_i8, &of, (n + NR - 1) / NR, threads);
}

#define TINY 1e-30f /* rows below it are zero: 127 over them would not be finite */

/* One scale for each row, so that no row sees how large another is: x [m, k] -> q [m, k4 * 4] around 128.
   A row that is not finite gets the scale NaN and stays alone with it. */
INLINE void quantise(const float *restrict x, long k, uint8_t *restrict q, float *scale)
{
    uint32_t largest = 0; /* sizes in the order of their bits; above any number's lie infinity's and NaN's */
    for (long i = 0; i < k; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    int finite = largest < 0x7f800000;
    float most, factor;
    memcpy(&most, &largest, 4);
    factor = finite && most > TINY ? 127.0f / most : 0.0f;
    if (finite)
        for (long i = 0; i < k; i++) q[i] = (uint8_t)(int32_t)(rintf(x[i] * factor) + 128.0f);
    else memset(q, 128, k);
    memset(q + k, 128, (k + 3) / 4 * 4 - k);
    *scale = finite ? most / 127.0f : NAN;
}

INLINE void tile_i8(const int rows, const uint8_t *restrict q, long stride_q, const int8_t *restrict b, long k4,
                    int alone, const int8_t *next, int lines, int32_t *restrict sums)
{
#if defined(__AVX512VNNI__)
    __m512i total[MR][NV];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NV; j++) total[i][j] = _mm512_setzero_si512();
    for (long p = 0; p < k4; p++) {
        __m512i columns[NV];
        for (int j = 0; j < NV; j++) {
            columns[j] = _mm512_loadu_si512(b + (p * NR + j * VL) * 4);
            if (alone) __builtin_prefetch(b + ((p + AHEAD) * NR + j * VL) * 4, 0, 2);
        }
        if (next) {
            __builtin_prefetch(next + p * lines * 64);
            if (lines > 1) __builtin_prefetch(next + (p * lines + 1) * 64);
        }
        for (int i = 0; i < rows; i++) {
            int32_t four;
            memcpy(&four, q + i * stride_q + p * 4, 4);
            for (int j = 0; j < NV; j++)
                total[i][j] = _mm512_dpbusd_epi32(total[i][j], _mm512_set1_epi32(four), columns[j]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NV; j++) _mm512_storeu_si512(sums + i * NR + j * VL, total[i][j]);
#elif defined(__AVX2__) && VL == 8
    /* Pairs of 16 bits: the products of bytes with their sums in 16 bits could overflow. */
    const int some = rows > 2 ? 1 : NV; /* vectors of columns whose sums the registers hold */
    for (int from = 0; from < NV; from += some) {
        __m256i low[MR][NV], high[MR][NV];
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < some; j++) low[i][j] = high[i][j] = _mm256_setzero_si256();
        for (long p = 0; p < k4; p++) {
            __m256i value[MR];
            for (int i = 0; i < rows; i++) {
                int32_t four;
                memcpy(&four, q + i * stride_q + p * 4, 4);
                value[i] = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
            }
            if (next && !from) __builtin_prefetch(next + p * lines * 64);
            for (int j = 0; j < some; j++) {
                const __m128i *columns = (const __m128i *)(b + (p * NR + (from + j) * VL) * 4);
                __m256i first = _mm256_cvtepi8_epi16(_mm_loadu_si128(columns));
                __m256i last = _mm256_cvtepi8_epi16(_mm_loadu_si128(columns + 1));
                if (alone) __builtin_prefetch(b + ((p + AHEAD) * NR + (from + j) * VL) * 4, 0, 2);
                for (int i = 0; i < rows; i++) {
                    low[i][j] = _mm256_add_epi32(low[i][j], _mm256_madd_epi16(value[i], first));
                    high[i][j] = _mm256_add_epi32(high[i][j], _mm256_madd_epi16(value[i], last));
                }
            }
        }
        for (int i = 0; i < rows; i++) /* each column's two sums to one, in the columns' order */
            for (int j = 0; j < some; j++)
                _mm256_storeu_si256((__m256i *)(sums + i * NR + (from + j) * VL),
                                    _mm256_permute4x64_epi64(_mm256_hadd_epi32(low[i][j], high[i][j]), 0xd8));
    }
#else
    memset(sums, 0, rows * NR * 4);
    for (int i = 0; i < rows; i++)
        for (long p = 0; p < k4; p++)
            for (int j = 0; j < NR; j++)
                for (int d = 0; d < 4; d++)
                    sums[i * NR + j] += q[i * stride_q + p * 4 + d] * b[(p * NR + j) * 4 + d];
#endif
}

static void rows_i8(int rows, const uint8_t *q, long stride_q, const int8_t *b, long k4, int alone,
                    const int8_t *next, int lines, int32_t *sums)
{
    switch (rows) {
#define ROWS(z) case z: tile_i8(z, q, stride_q, b, k4, alone, next, lines, sums); break;
    ROWS(1) ROWS(2) ROWS(3) ROWS(4)
#if MR == 8
    ROWS(5) ROWS(6) ROWS(7) ROWS(8)
#endif
    }
}

typedef struct {
    const float *x, *scales, *bias, *add;
    const int8_t *packed;
    const int32_t *sums;
    float *out, *row_scales;
    uint8_t *q;
    long m, k, k4, n, panels, together;
    int gelu;
} ProductI8;

static void quantise_rows(const void *what, long piece)
{
    const ProductI8 *of = what;
    for (long i = piece * MR; i < piece * MR + MR && i < of->m; i++)
        quantise(of->x + i * of->k, of->k, of->q + i * of->k4 * 4, of->row_scales + i);
}

/* As panels_f32. */
static void panels_i8(const void *what, long piece)
{
    const ProductI8 *of = what;
    long m = of->m, k4 = of->k4, n = of->n, last = (piece + 1) * of->together;
    long tiles = (m + MR - 1) / MR;
    int lines = tiles > 2 ? 1 : 2;
    for (long p = piece * of->together; p < last && p < of->panels; p++) {
        int columns = n - p * NR < NR ? (int)(n - p * NR) : NR;
        const int8_t *b = of->packed + p * k4 * NR * 4;
        for (long i = 0; i < m; i += MR) {
            int rows = m - i < MR ? (int)(m - i) : MR, fetched = i / MR * lines;
            const int8_t *share = tiles < 2 || fetched > 2 ? 0 : b + (k4 * NR * 4) + fetched * k4 * 64;
            int32_t totals[MR * NR];
            rows_i8(rows, of->q + i * k4 * 4, k4 * 4, b, k4, tiles < 2, share, lines, totals);
            for (int r = 0; r < rows; r++) {
                float line[NR], scale = of->row_scales[i + r];
                for (int j = 0; j < NR; j++)
                    line[j] = (float)(totals[r * NR + j] - of->sums[p * NR + j]) * (scale * of->scales[p * NR + j]) +
                              of->bias[p * NR + j];
                finish(line, of->add ? of->add + (i + r) * n + p * NR : 0, columns, of->gelu);
                memcpy(of->out + (i + r) * n + p * NR, line, columns * 4);
            }
        }
    }
}

/* As linear_f32; q [m, k4 * 4] and row_scales [m] are scratch. */
void linear_i8(const float *x, long m, long k, const int8_t *packed, const float *scales, const int32_t *sums,
               long n, const float *bias, int gelu, const float *add, uint8_t *q, float *row_scales, float *out,
               int threads)
{
    long panels = (n + NR - 1) / NR, some = together(panels, threads);
    ProductI8 of = {x,   scales, bias, add,        packed, sums, out, row_scales,
                    q,   m,      k,    (k + 3) / 4, n,      panels, some, gelu};
    run_pieces(quantise_rows, &of, (m + MR - 1) / MR, m > 2 * MR ? threads : 1);
    run_pieces(panels_i8, &of, (panels + some - 1) / some, threads);
}
