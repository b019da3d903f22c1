/* Products of a few rows with a packed matrix in float32, [panels][k][NR]. */
#include "kernels.h"
#include "panels.h"

/* Rows of a panel taken at a time. Of few tiles the sums are soon put away and taken up again, and a block stays near
   while all of them read it; of many, a block that fills a level-2 cache is dearer to fetch than to read again. */
#define FEW 64
#define FEW_KC 192
#define KC 768

long panel_width(void) { return NR; }

static void pack_panel_f32(const void *what, long p)
{
    const Pack *of = what;
    float *out = (float *)of->out + p * of->k * NR;
    for (long i = 0; i < of->k; i++)
        for (long j = 0; j < NR; j++) {
            long column = p * NR + j;
            out[i * NR + j] = column < of->n ? of->w[i * of->stride_k + column * of->stride_n] : 0.0f;
        }
}

/* float32: w [k, n] by its strides -> out [panels][k][NR] */
void pack_f32(const float *w, long k, long n, long stride_k, long stride_n, float *out, int threads)
{
    Pack of = {w, k, n, stride_k, stride_n, out, 0, 0};
    run_pieces(pack_panel_f32, &of, (n + NR - 1) / NR, threads);
}

/* On the way it fetches what it will read soon if it is alone, else `lines` lines of `next` for each of k. */
INLINE void tile_f32(const int rows, const float *restrict x, long stride_x, const float *restrict b, long k,
                     const float *bias, int alone, const char *next, int lines, float *restrict c, long stride_c)
{
    vec sums[MR][NV];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NV; j++)
            sums[i][j] = bias ? *(const vec *)(bias + j * VL) : *(vec *)(c + i * stride_c + j * VL);
    for (long p = 0; p < k; p++) {
        vec columns[NV];
        for (int j = 0; j < NV; j++) {
            columns[j] = *(const vec *)(b + p * NR + j * VL);
            if (alone) __builtin_prefetch(b + (p + AHEAD) * NR + j * VL, 0, 2);
        }
        if (next) {
            __builtin_prefetch(next + p * lines * 64, 0, 2); /* into level 2: level 1 is full of what is read now */
            if (lines > 1) __builtin_prefetch(next + (p * lines + 1) * 64, 0, 2);
        }
        for (int i = 0; i < rows; i++) {
            vec value = x[i * stride_x + p] - (vec){};
            for (int j = 0; j < NV; j++)
                sums[i][j] += value * columns[j];
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NV; j++)
            *(vec *)(c + i * stride_c + j * VL) = sums[i][j];
}

static void rows_f32(int rows, const float *x, long stride_x, const float *b, long k, const float *bias,
                     int alone, const char *next, int lines, float *c, long stride_c)
{
    switch (rows) {
#define ROWS(z) case z: tile_f32(z, x, stride_x, b, k, bias, alone, next, lines, c, stride_c); break;
    ROWS(1) ROWS(2) ROWS(3) ROWS(4)
#if MR == 8
    ROWS(5) ROWS(6) ROWS(7) ROWS(8)
#endif
    }
}

typedef struct {
    const float *x, *packed, *bias, *add;
    float *out;
    long m, k, n, panels, together;
    int gelu;
} ProductF32;

/* While the tiles of a block are computed, the block behind it in memory is fetched, a share by each tile, so
   that memory and arithmetic work at the same time. One tile alone fetches what it is about to read. */
static void panels_f32(const void *what, long piece)
{
    const ProductF32 *of = what;
    long m = of->m, k = of->k, n = of->n, last = (piece + 1) * of->together;
    long tiles = (m + MR - 1) / MR, kc = m > FEW ? KC : FEW_KC;
    int lines = tiles > 2 ? 1 : 2;
    for (long p = piece * of->together; p < last && p < of->panels; p++) {
        int columns = n - p * NR < NR ? (int)(n - p * NR) : NR;
        for (long from = 0; from < k; from += kc) {
            long depth = k - from < kc ? k - from : kc;
            const float *b = of->packed + (p * k + from) * NR, *start = from ? 0 : of->bias + p * NR;
            const char *next = (const char *)(b + depth * NR);
            for (long i = 0; i < m; i += MR) {
                int rows = m - i < MR ? (int)(m - i) : MR;
                float *c = of->out + i * n + p * NR, edge[MR * NR];
                int whole = columns == NR, fetched = i / MR * lines;
                const char *share = tiles < 2 || fetched > 2 ? 0 : next + fetched * depth * 64;
                if (!whole && from)
                    for (int r = 0; r < rows; r++) memcpy(edge + r * NR, c + r * n, columns * 4);
                rows_f32(rows, of->x + i * k + from, k, b, depth, start, tiles < 2, share, lines,
                         whole ? c : edge, whole ? n : NR);
                for (int r = 0; r < rows; r++) {
                    if (!whole) memcpy(c + r * n, edge + r * NR, columns * 4);
                    if (from + depth == k)
                        finish(c + r * n, of->add ? of->add + (i + r) * n + p * NR : 0, columns, of->gelu);
                }
            }
        }
    }
}

/* out [m, n] = x [m, k] @ w + bias, then gelu, then + add [m, n]; bias [panels * NR], padded with zeros. */
void linear_f32(const float *x, long m, long k, const float *packed, long n, const float *bias, int gelu,
                const float *add, float *out, int threads)
{
    long panels = (n + NR - 1) / NR, some = together(panels, threads);
    ProductF32 of = {x, packed, bias, add, out, m, k, n, panels, some, gelu};
    run_pieces(panels_f32, &of, (panels + some - 1) / some, threads);
}
