/* The arguments of the calls from Python: `compiled.c` includes this.
 *
 * Each is checked before anything is read or written: whatever they are, nothing beyond a buffer is touched.
 */

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

static int misfit(void)
{
    PyErr_SetString(PyExc_ValueError, "the arguments do not fit together");
    return -1;
}

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

/* Read the arguments of `add`, and check those that tell how much there is; return 0, or -1 with an error set. */
static int parse(PyObject *arguments, Arguments *given, Fold *fold)
{
    if (!PyArg_ParseTuple(
            arguments, "iO!y#OO!y#y#O!nippdp", &given->variant, &PyTuple_Type, &given->rows, &given->kinds,
            &given->kinds_size, &given->weights, &PyTuple_Type, &given->newest, &given->newest_kinds,
            &given->newest_size, &given->begins, &given->begins_size, &PyTuple_Type, &given->sums, &given->count,
            &fold->target, &given->wide, &fold->plain, &fold->limit, &fold->ends))
        return -1;
    const Py_ssize_t rows = PyTuple_Size(given->rows), averages = PyTuple_Size(given->newest);
    fold->rows = rows > MOST_ROWS ? 0 : (int)rows;
    fold->averages = averages > MOST_AVERAGES ? 0 : (int)averages;
    fold->count = (size_t)given->count;
    return fits(given, fold) ? 0 : misfit();
}

/* Read the arguments of `add`, and how many numbers of a row are read at once; return 0, or -1 with an error set. */
static int parse_stretch(
    PyObject *of_add, Arguments *given, Fold *fold, Stretch *stretch, Py_ssize_t keeps_size, Py_ssize_t most)
{
    if (parse(of_add, given, fold) < 0)
        return -1;
    if (keeps_size != fold->rows || most < 1)
        return misfit();
    stretch->most = (size_t)most < fold->count ? (size_t)most : fold->count;
    return 0;
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

/* Take the pieces of all rows, `number` of them, and check that each row has its bytes; return 0, or -1 with an error
 * set. Those that were taken are counted in `taken`. */
static int take_pieces(
    const Fold *fold, Reading *reading, Buffers *buffers, PyObject *pieces, PyObject *numbers, Py_buffer *views,
    Py_ssize_t number, Py_ssize_t *taken)
{
    const char *const counts = memory(buffers, numbers, PyBUF_SIMPLE, (size_t)fold->rows * sizeof(int64_t));
    if (counts == NULL)
        return -1;
    for (int k = 0; k < fold->rows; k++) {
        int64_t counted, needed = (int64_t)(fold->count * SIZES[fold->kinds[k]]);
        memcpy(&counted, counts + (size_t)k * sizeof counted, sizeof counted);
        reading->held[k] = (Held){&views[*taken], 0};
        for (; needed >= 0 && counted > 0 && *taken < number; counted--) {
            if (PyObject_GetBuffer(PyTuple_GetItem(pieces, *taken), &views[*taken], PyBUF_SIMPLE) < 0)
                return -1;
            needed -= views[(*taken)++].len;
        }
        if (needed != 0 || counted != 0 || &views[*taken] == reading->held[k].piece) {
            PyErr_SetString(PyExc_ValueError, "the pieces of a row do not fit together");
            return -1;
        }
    }
    return 0;
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
                                span.size <= needed && -1 <= span.offset && span.offset <= INT64_MAX - span.size;
            needed = is_good ? needed - span.size : -1;
        }
        if (needed != 0 || counted != 0) {
            PyErr_SetString(PyExc_ValueError, "the spans of a row do not fit together");
            return -1;
        }
    }
    return 0;
}
