/* What the sum of rows is made of, and the variants of it for the processors that there are.
 *
 * The sum itself is in `compiled_sum.h`, which is compiled for each variant.
 */

#include <fenv.h>
#include <float.h>
#include <stdint.h>
#include <string.h>

/* Where one of these holds, no build is better than this one: numpy does the work. */
#ifndef __GNUC__
#error "vectors are written as gcc and clang have them"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "stored numbers are little-endian"
#endif
#if FLT_EVAL_METHOD != 0 || defined(__FAST_MATH__)
#error "each step has to be rounded to its type"
#endif

#define MOST_ROWS 32
#define MOST_AVERAGES 32

/* How numbers are stored; SAME is the type of the sum. */
enum { BF16, F16, F32, F64, KINDS, SAME = KINDS };
static const size_t SIZES[KINDS] = {2, 2, 4, 8};

/* One average. `sums` has room for its sum so far; the average in the end goes to `out`, which is not further on. */
typedef struct {
    double weights[MOST_ROWS];
    const char *newest;
    int newest_kind;
    int begins; /* whether there is no sum so far */
    char *sums;
    char *out;
} Average;

/* What is to be done: add the rows to all averages. */
typedef struct {
    size_t count;
    int rows;
    const char *row[MOST_ROWS];
    int kinds[MOST_ROWS];
    int averages;
    Average average[MOST_AVERAGES];
    int target;
    int plain; /* the sum of values, not of differences to the newest */
    int ends;  /* whether these are the last rows */
    double limit;
} Fold;

/* Where the numbers of one tile are, in each row and in one average. */
typedef struct {
    const char *rows[MOST_ROWS];
    int kinds[MOST_ROWS];
    const char *newest;
    int newest_kind;
    char *sums;
    char *out;
} Tile;

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

/* Return whether the processor has AVX2 and F16C, and with `wide` AVX-512F, and the system keeps their registers.
 *
 * Asked here, since not every compiler brings what its own __builtin_cpu_supports needs when it runs.
 */
static int has(int wide)
{
    unsigned a, b, c, d, kept;
    const unsigned needed = bit_OSXSAVE | bit_F16C, registers = wide ? 0xE6 : 0x06;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & needed) != needed)
        return 0;
    __asm__("xgetbv" : "=a"(kept), "=d"(d) : "c"(0));
    if ((kept & registers) != registers || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    return (b & bit_AVX2) && (!wide || (b & bit_AVX512F));
}

static int has_avx2(void) { return has(0); }

static int has_avx512(void) { return has(1); }

/* Four numbers of 16 bits are half of the smallest vector. */
#define FOUR(shorts) _mm_set_epi64x(0, (int64_t)(shorts))
#define FOUR_WORDS(shorts) _mm_cvtepu16_epi32(FOUR(shorts))
#define FOUR_HALVES(halves) _mm_cvtph_ps(FOUR(halves))
#define STORE_FOUR_HALVES(at, floats) _mm_storel_epi64((__m128i *)(at), _mm_cvtps_ph((__m128)(floats), 0))

#define CPU_AVX2 __attribute__((target("avx2,f16c")))
#define CPU_AVX512 __attribute__((target("avx512f,avx2,f16c")))

#define NAME(x) x##_float_avx2
#define FOR_CPU CPU_AVX2
#define VECTOR 32
#define REAL float
#define BITS uint32_t
#define WIDE 0
#define TO_WORDS(shorts) _mm256_cvtepu16_epi32((__m128i)(shorts))
#define HALF_TO_FLOAT(halves) _mm256_cvtph_ps((__m128i)(halves))
#define FLOAT_TO_HALF(at, floats) _mm_storeu_si128((__m128i *)(at), _mm256_cvtps_ph((__m256)(floats), 0))
#include "compiled_sum.h"

#define NAME(x) x##_double_avx2
#define FOR_CPU CPU_AVX2
#define VECTOR 32
#define REAL double
#define BITS uint64_t
#define WIDE 1
#define TO_WORDS FOUR_WORDS
#define HALF_TO_FLOAT FOUR_HALVES
#define FLOAT_TO_HALF STORE_FOUR_HALVES
#include "compiled_sum.h"

#define NAME(x) x##_float_avx512
#define FOR_CPU CPU_AVX512
#define VECTOR 64
#define REAL float
#define BITS uint32_t
#define WIDE 0
#define TO_WORDS(shorts) _mm512_cvtepu16_epi32((__m256i)(shorts))
#define HALF_TO_FLOAT(halves) _mm512_cvtph_ps((__m256i)(halves))
#define FLOAT_TO_HALF(at, floats) _mm256_storeu_si256((__m256i *)(at), _mm512_cvtps_ph((__m512)(floats), 0))
#include "compiled_sum.h"

#define NAME(x) x##_double_avx512
#define FOR_CPU CPU_AVX512
#define VECTOR 64
#define REAL double
#define BITS uint64_t
#define WIDE 1
#define TO_WORDS(shorts) _mm256_cvtepu16_epi32((__m128i)(shorts))
#define HALF_TO_FLOAT(halves) _mm256_cvtph_ps((__m128i)(halves))
#define FLOAT_TO_HALF(at, floats) _mm_storeu_si128((__m128i *)(at), _mm256_cvtps_ph((__m256)(floats), 0))
#include "compiled_sum.h"
#endif

static int has_any(void) { return 1; }

#define NAME(x) x##_float_any
#define FOR_CPU
#define VECTOR 16
#define REAL float
#define BITS uint32_t
#define WIDE 0
#include "compiled_sum.h"

#define NAME(x) x##_double_any
#define FOR_CPU
#define VECTOR 16
#define REAL double
#define BITS uint64_t
#define WIDE 1
#include "compiled_sum.h"

/* The best first. `sum` is of float and of double. */
static const struct {
    const char *name;
    int (*is_here)(void);
    uint64_t (*sum[2])(const Fold *);
} VARIANTS[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, {fold_float_avx512, fold_double_avx512}},
    {"avx2", has_avx2, {fold_float_avx2, fold_double_avx2}},
#endif
    {"baseline", has_any, {fold_float_any, fold_double_any}},
};
#define VARIANT_COUNT ((int)(sizeof VARIANTS / sizeof *VARIANTS))

/* Return whether the processor runs a variant. Asked once: a virtual machine takes its time to answer. */
static int is_here(int variant)
{
    static signed char known[sizeof VARIANTS / sizeof *VARIANTS]; /* 1 or -1 where it was asked; only ever so */
    if (known[variant] == 0)
        known[variant] = VARIANTS[variant].is_here() ? 1 : -1;
    return known[variant] > 0;
}

/* Run in the arithmetic of IEEE 754, whatever mode another library left: to nearest, with subnormals. */
static uint64_t run(int variant, int wide, const Fold *fold)
{
    fenv_t kept;
    fegetenv(&kept);
    fesetenv(FE_DFL_ENV);
    const uint64_t beyond = VARIANTS[variant].sum[wide](fold);
    fesetenv(&kept);
    return beyond;
}
