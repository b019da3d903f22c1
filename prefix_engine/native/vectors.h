/* What all kernels share: the width of a vector, and e^x. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

/* VL floats in a vector; a tile of a product is MR rows by NV vectors, as many as the registers hold. */
#if defined(__AVX512F__)
#define VL 16
#define MR 8
#define NV 3
#elif defined(__AVX2__)
#define VL 8
#define MR 4
#define NV 3
#else
#define VL 4
#define MR 8
#define NV 3
#endif
#define NR (VL * NV)

typedef float vec __attribute__((vector_size(VL * 4), aligned(4)));

#define INLINE static inline __attribute__((always_inline))

/* e^x to 2 ulp for x <= 0 and moderate x > 0; NaN stays NaN. Cephes' polynomial; plain C, so that loops
   over it become vector code. */
INLINE float exponential(float x)
{
    float low = x < -87.0f ? -87.0f : x;
    low = low > 88.0f ? 88.0f : low;
    float n = __builtin_rintf(low * 1.44269504088896341f);
    float r = low - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

/* GPT-2's GELU (tanh form): x / (1 + e^-2u) with u = sqrt(2/pi) (x + 0.044715 x^3). */
INLINE float gelu_of(float x)
{
    float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exponential(-2.0f * u));
}
