/* Rows that are read from open files or connections, or lie in pieces in memory: `compiled.c` includes this where `run`
 * is known.
 *
 * What is read is added while it is in the cache of the processor, and the few buffers of a stretch stay there. There
 * is no memory mapping: a file that ends early is told, and does not kill the process. Of pieces only what spans two of
 * them is copied, and what is kept.
 */

#include <errno.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* How rows are read that lie in open files: a stretch of all of them, then the next. */
typedef struct {
    size_t most;       /* numbers of one stretch */
    const char *keeps; /* of each row whether its memory holds all stretches; else one, again and again */
} Stretch;

/* A part of a row: so many bytes of an open file, or the next ones of a connection, whose offset is below 0. */
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
        const size_t most = left < nbytes ? left : nbytes;
        const int64_t offset = span.offset < 0 ? place->done : span.offset + place->done;
        const ssize_t got = span.offset < 0 ? recv((int)span.descriptor, to, most, MSG_WAITALL)
                                            : pread((int)span.descriptor, to, most, (off_t)offset);
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

/* Where the next byte of a row is that lies in memory in pieces. */
typedef struct {
    const Py_buffer *piece;
    size_t done; /* bytes of the piece that are taken */
} Held;

/* Return where the next bytes of a row are: in a piece, or copied to `to`. The pieces have so many bytes. */
static const char *next_bytes(Held *held, char *to, size_t nbytes, int is_copied)
{
    while (held->done == (size_t)held->piece->len && nbytes > 0) {
        held->piece++;
        held->done = 0;
    }
    if (nbytes <= (size_t)held->piece->len - held->done && !is_copied) {
        const char *const found = (const char *)held->piece->buf + held->done;
        held->done += nbytes;
        return found;
    }
    for (size_t copied = 0, size; copied < nbytes; copied += size) {
        const size_t left = (size_t)held->piece->len - held->done;
        size = left < nbytes - copied ? left : nbytes - copied;
        memmove(to + copied, (const char *)held->piece->buf + held->done, size);
        held->done += size;
        if (size == left && copied + size < nbytes) {
            held->piece++;
            held->done = 0;
        }
    }
    return to;
}

/* The arguments of `read_and_add` and `add_pieces` beside those of `add`. */
typedef struct {
    Stretch stretch;
    int is_held; /* whether the rows lie in memory, and not in files */
    Held held[MOST_ROWS];
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
            char *const to = (char *)part.row[k];
            if (reading->is_held)
                part.row[k] = next_bytes(&reading->held[k], to, part.count * size, reading->stretch.keeps[k]);
            else if (fill(&reading->place[k], to, part.count * size, reading->stop, end) < 0)
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
