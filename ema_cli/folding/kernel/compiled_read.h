/* Rows that are read from open files, without the interpreter: `compiled.c` includes this where `run` is known.
 *
 * What is read is added while it is in the cache of the processor, and the few buffers of a stretch stay there. There
 * is no memory mapping: a file that ends early is told, and does not kill the process.
 */

#include <errno.h>
#include <time.h>
#include <unistd.h>

/* How rows are read that lie in open files: a stretch of all of them, then the next. */
typedef struct {
    size_t most;       /* numbers of one stretch */
    const char *keeps; /* of each row whether its memory holds all stretches; else one, again and again */
} Stretch;

/* A part of a row: so many bytes of an open file. */
typedef struct {
    int64_t descriptor, offset, size;
} Span;

/* Where the next byte of a row is. */
typedef struct {
    const char *spans; /* in memory that may begin anywhere */
    size_t span;
    int64_t done; /* bytes of the span that are read */
} Place;

static Span span_at(const char *spans, size_t number)
{
    Span span;
    memcpy(&span, spans + number * sizeof span, sizeof span);
    return span;
}

/* Why the reading ended early, and where: `error` is 0 where the file ended. */
typedef struct {
    enum { READ, FAILED, STOPPED } how;
    int error;
    int64_t span, offset;
} End;

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Fill memory with the next bytes of a row; return 0, or -1 with the end noted. The spans have so many bytes. */
static int fill(Place *place, char *to, size_t nbytes, const char *stop, End *end)
{
    while (nbytes > 0) {
        const Span span = span_at(place->spans, place->span);
        const size_t left = (size_t)(span.size - place->done);
        if (left == 0) {
            place->span++;
            place->done = 0;
            continue;
        }
        if (__atomic_load_n(stop, __ATOMIC_RELAXED)) { /* which other threads set */
            end->how = STOPPED;
            return -1;
        }
        const int64_t offset = span.offset + place->done;
        const ssize_t got = pread((int)span.descriptor, to, left < nbytes ? left : nbytes, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            *end = (End){FAILED, got < 0 ? errno : 0, (int64_t)place->span, offset};
            return -1;
        }
        place->done += got;
        to += got;
        nbytes -= (size_t)got;
    }
    return 0;
}

/* The arguments of `read_and_add` beside those of `add`. */
typedef struct {
    Stretch stretch;
    Place place[MOST_ROWS];
    const char *stop;
} Reading;

/* Read a stretch of all rows, and add it while it is in the cache; then the next. Return how long the reads took. */
static int64_t read_rows(int variant, int wide, const Fold *fold, Reading *reading, uint64_t *beyond, End *end)
{
    int64_t taken = 0;
    for (size_t at = 0; at < fold->count; at += reading->stretch.most) {
        const size_t left = fold->count - at;
        Fold part = *fold;
        part.count = left < reading->stretch.most ? left : reading->stretch.most;
        const int64_t begun = nanoseconds();
        for (int k = 0; k < fold->rows; k++) {
            const size_t size = SIZES[fold->kinds[k]];
            part.row[k] = fold->row[k] + (reading->stretch.keeps[k] ? at * size : 0);
            if (fill(&reading->place[k], (char *)part.row[k], part.count * size, reading->stop, end) < 0)
                return taken;
        }
        taken += nanoseconds() - begun;
        for (int a = 0; a < fold->averages; a++) {
            const Average *average = &fold->average[a];
            part.average[a].newest = average->newest + at * SIZES[average->newest_kind];
            part.average[a].sums = average->sums + at * (wide ? 8 : 4);
            part.average[a].out = average->out + at * SIZES[fold->target];
        }
        *beyond |= run(variant, wide, &part);
    }
    return taken;
}
