/* The arithmetic on blocks in C: the rules at the top of kernel/__init__.py, on all rows of a tile at once.
 *
 * A tile is as many numbers as the registers hold. While they are there, those of all rows are converted, multiplied
 * and added, and the average is rounded: each row is read once, and nothing in between goes to memory. The arithmetic
 * is in `compiled_sum.h`; here are the types, the variants for processors, and the entry from Python. Nothing is
 * allocated, and no argument makes it read or write beyond a buffer.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

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

#include "compiled_read.h"

/* The buffers of one call, all released together. */
typedef struct {
    Py_buffer views[MOST_ROWS + 2 * MOST_AVERAGES + 4];
    int number;
} Buffers;

/* Return the memory of an object that has at least `least` bytes; else set an error and return NULL. */
static char *memory(Buffers *buffers, PyObject *object, int flags, size_t least)
{
    Py_buffer *view = &buffers->views[buffers->number];
    if (object == NULL || PyObject_GetBuffer(object, view, flags) < 0)
        return NULL;
    buffers->number++;
    if ((size_t)view->len < least) {
        PyErr_Format(PyExc_ValueError, "%zd bytes, %zu are needed", view->len, least);
        return NULL;
    }
    return view->buf;
}

static void release(Buffers *buffers)
{
    while (buffers->number > 0)
        PyBuffer_Release(&buffers->views[--buffers->number]);
}

static int is_kind(int kind, int wide) { return 0 <= kind && kind < (wide ? KINDS : F64); }

/* The arguments of `add`, as Python gives them. */
typedef struct {
    int variant, wide;
    PyObject *rows, *weights, *newest, *sums;
    const char *kinds, *newest_kinds, *begins;
    Py_ssize_t kinds_size, newest_size, begins_size;
    Py_ssize_t count;
} Arguments;

/* Check the arguments that tell how much there is; return whether they fit together. */
static int fits(const Arguments *given, const Fold *fold)
{
    if (given->variant < 0 || given->variant >= VARIANT_COUNT || !is_here(given->variant))
        return 0;
    if (given->count < 0 || given->count > PY_SSIZE_T_MAX / 16 || !is_kind(fold->target, given->wide))
        return 0;
    if (fold->rows < 1 || fold->rows > MOST_ROWS || given->kinds_size != fold->rows)
        return 0;
    if (fold->averages < 1 || fold->averages > MOST_AVERAGES || given->newest_size != fold->averages)
        return 0;
    if (PyTuple_Size(given->sums) != fold->averages || given->begins_size != fold->averages)
        return 0;
    for (int k = 0; k < fold->rows; k++)
        if (!is_kind(given->kinds[k], given->wide))
            return 0;
    for (int a = 0; a < fold->averages; a++)
        if (!is_kind(given->newest_kinds[a], given->wide))
            return 0;
    return 1;
}

/* Take the memory of all arguments; return 0, or -1 with an error set. */
static int take(const Arguments *given, Fold *fold, Buffers *buffers, const Stretch *stretch)
{
    const size_t row_bytes = sizeof(double) * (size_t)fold->rows;
    const char *weights = memory(buffers, given->weights, PyBUF_SIMPLE, row_bytes * (size_t)fold->averages);
    if (weights == NULL)
        return -1;
    for (int k = 0; k < fold->rows; k++) {
        fold->kinds[k] = given->kinds[k];
        const size_t numbers = stretch == NULL || stretch->keeps[k] ? fold->count : stretch->most;
        const int flags = stretch == NULL ? PyBUF_SIMPLE : PyBUF_WRITABLE;
        fold->row[k] = memory(buffers, PyTuple_GetItem(given->rows, k), flags, numbers * SIZES[fold->kinds[k]]);
        if (fold->row[k] == NULL)
            return -1;
    }
    for (int a = 0; a < fold->averages; a++) {
        Average *average = &fold->average[a];
        memcpy(average->weights, weights + row_bytes * (size_t)a, row_bytes);
        average->begins = given->begins[a];
        average->newest_kind = given->newest_kinds[a];
        average->newest = memory(
            buffers, PyTuple_GetItem(given->newest, a), PyBUF_SIMPLE, fold->count * SIZES[average->newest_kind]);
        if (average->newest == NULL)
            return -1;
        average->sums = memory(
            buffers, PyTuple_GetItem(given->sums, a), PyBUF_WRITABLE, fold->count * (given->wide ? 8 : 4));
        if (average->sums == NULL)
            return -1;
        average->out = average->sums;
    }
    return 0;
}

static PyObject *add(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Arguments given;
    Buffers buffers = {.number = 0};
    Fold fold;
    if (!PyArg_ParseTuple(
            arguments, "iO!y#OO!y#y#O!nippdp", &given.variant, &PyTuple_Type, &given.rows, &given.kinds, &given.kinds_size,
            &given.weights, &PyTuple_Type, &given.newest, &given.newest_kinds, &given.newest_size, &given.begins,
            &given.begins_size, &PyTuple_Type, &given.sums, &given.count, &fold.target, &given.wide, &fold.plain,
            &fold.limit, &fold.ends))
        return NULL;
    const Py_ssize_t rows = PyTuple_Size(given.rows), averages = PyTuple_Size(given.newest);
    fold.rows = rows > MOST_ROWS ? 0 : (int)rows;
    fold.averages = averages > MOST_AVERAGES ? 0 : (int)averages;
    fold.count = (size_t)given.count;
    if (!fits(&given, &fold)) {
        PyErr_SetString(PyExc_ValueError, "the arguments do not fit together");
        return NULL;
    }
    uint64_t beyond = 0;
    const int failed = take(&given, &fold, &buffers, NULL);
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        beyond = run(given.variant, given.wide, &fold);
        Py_END_ALLOW_THREADS
    }
    release(&buffers);
    return failed ? NULL : PyLong_FromUnsignedLongLong(beyond);
}

/* Take the spans of all rows, and check that each row has its bytes; return 0, or -1 with an error set. */
static int take_spans(const Fold *fold, Reading *reading, Buffers *buffers, PyObject *spans, PyObject *numbers)
{
    const char *const number = memory(buffers, numbers, PyBUF_SIMPLE, (size_t)fold->rows * sizeof(int64_t));
    const char *const given = number == NULL ? NULL : memory(buffers, spans, PyBUF_SIMPLE, 0);
    if (given == NULL)
        return -1;
    size_t left = (size_t)buffers->views[buffers->number - 1].len / sizeof(Span), at = 0;
    for (int k = 0; k < fold->rows; k++) {
        int64_t counted, needed = (int64_t)(fold->count * SIZES[fold->kinds[k]]);
        memcpy(&counted, number + (size_t)k * sizeof counted, sizeof counted);
        reading->place[k] = (Place){given, at, 0};
        for (; needed >= 0 && counted > 0 && left > 0; counted--, left--, at++) {
            const Span span = span_at(given, at);
            const int is_good = 0 <= span.descriptor && span.descriptor <= INT32_MAX && 0 <= span.size &&
                                span.size <= needed && 0 <= span.offset && span.offset <= INT64_MAX - span.size;
            needed = is_good ? needed - span.size : -1;
        }
        if (needed != 0 || counted != 0) {
            PyErr_SetString(PyExc_ValueError, "the spans of a row do not fit together");
            return -1;
        }
    }
    return 0;
}

static PyObject *read_and_add(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Arguments given;
    Buffers buffers = {.number = 0};
    Fold fold;
    Reading reading;
    PyObject *spans, *numbers, *stop;
    Py_ssize_t most, keeps_size;
    if (!PyArg_ParseTuple(
            arguments, "iO!y#OO!y#y#O!nippdpOOy#nO", &given.variant, &PyTuple_Type, &given.rows, &given.kinds,
            &given.kinds_size, &given.weights, &PyTuple_Type, &given.newest, &given.newest_kinds, &given.newest_size,
            &given.begins, &given.begins_size, &PyTuple_Type, &given.sums, &given.count, &fold.target, &given.wide,
            &fold.plain, &fold.limit, &fold.ends, &spans, &numbers, &reading.stretch.keeps, &keeps_size, &most, &stop))
        return NULL;
    const Py_ssize_t rows = PyTuple_Size(given.rows), averages = PyTuple_Size(given.newest);
    fold.rows = rows > MOST_ROWS ? 0 : (int)rows;
    fold.averages = averages > MOST_AVERAGES ? 0 : (int)averages;
    fold.count = (size_t)given.count;
    if (!fits(&given, &fold) || keeps_size != fold.rows || most < 1) {
        PyErr_SetString(PyExc_ValueError, "the arguments do not fit together");
        return NULL;
    }
    reading.stretch.most = (size_t)most < fold.count ? (size_t)most : fold.count;
    uint64_t beyond = 0;
    int64_t taken = 0;
    End end = {READ, 0, 0, 0};
    int failed = take(&given, &fold, &buffers, &reading.stretch) || take_spans(&fold, &reading, &buffers, spans, numbers);
    if (!failed) {
        reading.stop = memory(&buffers, stop, PyBUF_SIMPLE, 1);
        failed = reading.stop == NULL;
    }
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        taken = read_rows(given.variant, given.wide, &fold, &reading, &beyond, &end);
        Py_END_ALLOW_THREADS
    }
    release(&buffers);
    if (failed)
        return NULL;
    const long long span = end.how == READ ? -1 : end.how == STOPPED ? -2 : (long long)end.span;
    return Py_BuildValue("(KLLLi)", (unsigned long long)beyond, (long long)taken, span, (long long)end.offset, end.error);
}

static PyObject *variants(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    PyObject *names = PyList_New(0);
    for (int variant = 0; names != NULL && variant < VARIANT_COUNT; variant++) {
        PyObject *name = Py_BuildValue("(is)", variant, VARIANTS[variant].name);
        if (name == NULL || (is_here(variant) && PyList_Append(names, name) < 0))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyMethodDef METHODS[] = {
    {"add", add, METH_VARARGS, "Add rows to the sums of averages; return a bit for each that is not below the limit."},
    {"read_and_add", read_and_add, METH_VARARGS,
     "Read rows from open files, stretch by stretch, and add them; return the bits of `add`, the nanoseconds of the reads,\n"
     "and the span, the offset and the error where they ended: span -1 where all was read, -2 where they were stopped."},
    {"variants", variants, METH_NOARGS, "Return number and name of each variant that this processor runs, the best first."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_compiled",
    .m_doc = "The arithmetic on blocks in C.",
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&MODULE); }
