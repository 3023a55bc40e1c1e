/* The arithmetic on blocks in C: the rules at the top of kernel/__init__.py, on all rows of a tile at once.
 *
 * A tile is as many numbers as the registers hold. While they are there, those of all rows are converted, multiplied
 * and added, and the average is rounded: each row is read once, and nothing in between goes to memory. Nothing is
 * allocated, and no argument makes it read or write beyond a buffer.
 *
 * Here is the entry from Python: `compiled_arguments.h` checks what comes, `compiled_read.h` reads files,
 * `compiled_variants.h` has the types and the variants for processors, `compiled_sum.h` the arithmetic.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "compiled_variants.h"
#include "compiled_read.h"
#include "compiled_arguments.h"

static PyObject *add(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Arguments given;
    Buffers buffers = {.number = 0};
    Fold fold;
    if (parse(arguments, &given, &fold) < 0)
        return NULL;
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

static PyObject *read_and_add(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Arguments given;
    Buffers buffers = {.number = 0};
    Fold fold;
    Reading reading = {.is_held = 0};
    PyObject *of_add, *spans, *numbers, *stop;
    Py_ssize_t most, keeps_size;
    if (!PyArg_ParseTuple(
            arguments, "O!OOy#nO", &PyTuple_Type, &of_add, &spans, &numbers, &reading.stretch.keeps, &keeps_size, &most,
            &stop))
        return NULL;
    if (parse_stretch(of_add, &given, &fold, &reading.stretch, keeps_size, most) < 0)
        return NULL;
    uint64_t beyond = 0;
    int64_t taken = 0;
    End end = {READ, 0, 0, 0};
    const int failed = take(&given, &fold, &buffers, &reading.stretch) < 0 ||
                       take_spans(&fold, &reading, &buffers, spans, numbers) < 0 ||
                       (reading.stop = memory(&buffers, stop, PyBUF_SIMPLE, 1)) == NULL;
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

static PyObject *add_pieces(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Arguments given;
    Buffers buffers = {.number = 0};
    Fold fold;
    Reading reading = {.is_held = 1};
    PyObject *of_add, *pieces, *numbers;
    Py_ssize_t most, keeps_size, taken = 0;
    if (!PyArg_ParseTuple(
            arguments, "O!O!Oy#n", &PyTuple_Type, &of_add, &PyTuple_Type, &pieces, &numbers, &reading.stretch.keeps,
            &keeps_size, &most))
        return NULL;
    if (parse_stretch(of_add, &given, &fold, &reading.stretch, keeps_size, most) < 0)
        return NULL;
    const Py_ssize_t number = PyTuple_Size(pieces);
    Py_buffer *const views = PyMem_Malloc(((size_t)number + 1) * sizeof *views);
    if (views == NULL)
        return PyErr_NoMemory();
    uint64_t beyond = 0;
    End end = {READ, 0, 0, 0};
    const int failed = take(&given, &fold, &buffers, &reading.stretch) < 0 ||
                       take_pieces(&fold, &reading, &buffers, pieces, numbers, views, number, &taken) < 0;
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        read_rows(given.variant, given.wide, &fold, &reading, &beyond, &end);
        Py_END_ALLOW_THREADS
    }
    while (taken > 0)
        PyBuffer_Release(&views[--taken]);
    PyMem_Free(views);
    release(&buffers);
    return failed ? NULL : PyLong_FromUnsignedLongLong(beyond);
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
     "Read rows from open files or connections, stretch by stretch, and add them, with the arguments of `add` as the\n"
     "first; return its bits, the nanoseconds of the reads, and the span, the offset and the error where they ended:\n"
     "span -1 where all was read, -2 where they were stopped."},
    {"add_pieces", add_pieces, METH_VARARGS,
     "Add rows that lie in pieces in memory, with the arguments of `add` as the first; return its bits."},
    {"variants", variants, METH_NOARGS, "Return number and name of each variant that this processor runs, the best first."},
    {NULL, NULL, 0, NULL},
};

/* Raised with each change of the arguments or results above, here and in compiled_kernel.py. */
#define INTERFACE 2

static int begin(PyObject *module) { return PyModule_AddIntConstant(module, "INTERFACE", INTERFACE); }

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, begin}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_compiled",
    .m_doc = "The arithmetic on blocks in C.",
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__compiled(void) { return PyModuleDef_Init(&MODULE); }
