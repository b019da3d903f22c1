/* What the sources offer each other; each says beside its definition what it does. */
#pragma once
#include <stdint.h>

void norm_f32(const float *x, long rows, long columns, const float *weight, const float *bias, float eps, float *out,
              int threads);
void linear_f32(const float *x, long m, long k, const float *packed, long n, const float *bias, int gelu,
                const float *add, float *out, int threads);
void linear_i8(const float *x, long m, long k, const int8_t *packed, const float *scales, const int32_t *sums,
               long n, const float *bias, int gelu, const float *add, uint8_t *q, float *row_scales, float *out,
               int threads);
void attend(const float *qkv, float *out, char *keys, char *values, long stride, long heads, long head_dim, long page,
            int bf16, const int64_t *tables, const int64_t *tokens, long n, const int64_t *tasks, long count,
            int threads);
