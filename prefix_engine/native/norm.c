/* Layer norm of each row: one row's numbers never meet another's. */
#include "kernels.h"
#include "threads.h"
#include "vectors.h"

#define ROWS 8 /* of one piece of work */

typedef struct {
    const float *x, *weight, *bias;
    float *out;
    long rows, columns;
    float eps;
} Norm;

static void norm_rows(const void *what, long piece)
{
    const Norm *of = what;
    long columns = of->columns;
    for (long row = piece * ROWS; row < piece * ROWS + ROWS && row < of->rows; row++) {
        const float *x = of->x + row * columns;
        float *out = of->out + row * columns, sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < columns; i++) sum += x[i];
        float mean = sum / (float)columns;
#pragma omp simd reduction(+ : squares)
        for (long i = 0; i < columns; i++) squares += (x[i] - mean) * (x[i] - mean);
        float scale = 1.0f / sqrtf(squares / (float)columns + of->eps);
        for (long i = 0; i < columns; i++) out[i] = (x[i] - mean) * scale * of->weight[i] + of->bias[i];
    }
}

/* x [rows, columns] -> out [rows, columns] */
void norm_f32(const float *x, long rows, long columns, const float *weight, const float *bias, float eps, float *out,
              int threads)
{
    Norm of = {x, weight, bias, out, rows, columns, eps};
    run_pieces(norm_rows, &of, (rows + ROWS - 1) / ROWS, threads);
}
