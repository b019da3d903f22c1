/* The best number of each row, in one pass, and whether all of the row are finite. */
#include "threads.h"
#include "vectors.h"

#define BLOCK (VL * 16)

typedef struct {
    const float *numbers;
    long columns;
    int64_t *found; /* [rows, 2]: place of the largest, the first of equals; 1 if all are finite */
} Rows;

static void best_of_row(const void *what, long row)
{
    const Rows *of = what;
    const float *numbers = of->numbers + row * of->columns;
    vec nothing = {}; /* x * 0 is NaN where x is not finite */
    float most = -INFINITY, rest = 0.0f;
    long where = 0, whole = of->columns / BLOCK * BLOCK;
    for (long at = 0; at < whole; at += BLOCK) {
        float block = -INFINITY;
        for (long i = 0; i < BLOCK; i += VL) nothing += *(const vec *)(numbers + at + i) * 0.0f;
#pragma omp simd reduction(max : block)
        for (long i = 0; i < BLOCK; i++) block = numbers[at + i] > block ? numbers[at + i] : block;
        if (block > most) {
            most = block;
            where = at;
        }
    }
    for (int i = 0; i < VL; i++) rest += nothing[i];
    long end = where + BLOCK < whole ? where + BLOCK : whole;
    while (where < end && numbers[where] < most) where++;
    for (long at = whole; at < of->columns; at++) {
        rest += numbers[at] * 0.0f;
        if (numbers[at] > most) {
            most = numbers[at];
            where = at;
        }
    }
    of->found[row * 2] = where < of->columns ? where : 0;
    of->found[row * 2 + 1] = rest == 0.0f;
}

/* numbers [rows, columns] -> found [rows, 2] */
void best_of_rows(const float *numbers, long rows, long columns, int64_t *found, int threads)
{
    Rows of = {numbers, columns, found};
    run_pieces(best_of_row, &of, rows, threads);
}
