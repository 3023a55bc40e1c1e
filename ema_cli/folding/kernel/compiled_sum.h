/* The sum of one tile of numbers, written once and compiled for each processor and each type of sum.
 *
 * C has no templates: `compiled.c` includes this file once for each variant, after it has defined
 *
 *     NAME(x)       the name of x in this variant
 *     FOR_CPU       the attribute that lets the compiler use the instructions of the variant
 *     VECTOR        the bytes of a vector of the processor
 *     REAL, BITS    the type of the sum, float or double, and an integer as wide
 *     WIDE          1 where that is double
 *     TO_WORDS      integers of 16 bits to such of 32, where the compiler does not find the instruction for it
 *     HALF_TO_FLOAT, FLOAT_TO_HALF   conversions of float16, where the processor has them
 *
 * Each step on a vector is one operation of IEEE 754 on each number in it, rounded for itself.
 */

#define LANES (VECTOR / (int)sizeof(REAL))
#define VECTORS 8 /* of one tile: as many as registers hold */
#define TILE (LANES * VECTORS)
#define ALL(type, value) ((value) - (NAME(type)){0})
#define INLINE static inline __attribute__((always_inline)) FOR_CPU

typedef REAL NAME(reals) __attribute__((vector_size(VECTOR)));
typedef BITS NAME(bits) __attribute__((vector_size(VECTOR)));
typedef float NAME(floats) __attribute__((vector_size(LANES * 4)));
typedef uint32_t NAME(words) __attribute__((vector_size(LANES * 4)));
typedef uint16_t NAME(shorts) __attribute__((vector_size(LANES * 2)));

/* Stored numbers to numbers of the sum: exact. */

INLINE NAME(reals) NAME(widen)(NAME(floats) values)
{
#if WIDE
    return __builtin_convertvector(values, NAME(reals));
#else
    return values;
#endif
}

INLINE NAME(reals) NAME(load_real)(const char *stored)
{
    NAME(reals) values;
    memcpy(&values, stored, sizeof values);
    return values;
}

INLINE NAME(reals) NAME(load_float)(const char *stored)
{
    NAME(floats) values;
    memcpy(&values, stored, sizeof values);
    return NAME(widen)(values);
}

INLINE NAME(reals) NAME(load_bfloat)(const char *stored)
{
    NAME(shorts) upper;
    memcpy(&upper, stored, sizeof upper);
#ifdef TO_WORDS
    return NAME(widen)((NAME(floats))((NAME(words))TO_WORDS(upper) << 16));
#else
    return NAME(widen)((NAME(floats))(__builtin_convertvector(upper, NAME(words)) << 16));
#endif
}

INLINE NAME(reals) NAME(load_half)(const char *stored)
{
    NAME(shorts) halves;
    memcpy(&halves, stored, sizeof halves);
#ifdef HALF_TO_FLOAT
    return NAME(widen)((NAME(floats))HALF_TO_FLOAT(halves));
#else
    /* Exponents of float16 begin 112 lower. Its subnormals have no leading one: it is lent to them, and taken off. */
    NAME(words) half = __builtin_convertvector(halves, NAME(words));
    NAME(words) magnitude = (half & 0x7FFF) << 13, exponent = magnitude & 0x0F800000;
    NAME(words) infinite = (NAME(words))(exponent == 0x0F800000), subnormal = (NAME(words))(exponent == 0);
    NAME(words) normal = magnitude + 0x38000000 + (infinite & 0x38000000);
    NAME(words) least = ALL(words, 0x38800000);
    NAME(words) small = (NAME(words))((NAME(floats))(magnitude + 0x38800000) - (NAME(floats))least);
    return NAME(widen)((NAME(floats))(((subnormal & small) | (~subnormal & normal)) | (half & 0x8000) << 16));
#endif
}

/* Do something with each vector `v` of a tile that is stored as `kind`: `action` gets the numbers of the vector. */
#define UNROLLED _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; v++)
#define EACH(action, load, size) UNROLLED { action(load(stored + v * LANES * (int)(size))) }
#define EACH_OF_KIND(action)                                        \
    switch (kind) {                                                 \
    case BF16: EACH(action, NAME(load_bfloat), 2) break;            \
    case F16: EACH(action, NAME(load_half), 2) break;               \
    case F32: EACH(action, NAME(load_float), 4) break;              \
    default: EACH(action, NAME(load_real), sizeof(REAL)) break;     \
    }

INLINE void NAME(load)(int kind, const char *stored, NAME(reals) *values)
{
#define KEEP(numbers) values[v] = numbers;
    EACH_OF_KIND(KEEP)
}

/* Multiply and add what is stored: the numbers where the sum is plain, else their differences to the newest ones. */
INLINE void NAME(add_row)(int kind, const char *stored, NAME(reals) weight, const NAME(reals) *newest,
                          NAME(reals) *total, const int plain)
{
#define ADD(numbers)                                                \
    NAME(reals) value = numbers;                                    \
    NAME(reals) product = weight * (plain ? value : value - newest[v]); \
    total[v] = total[v] + product;
    EACH_OF_KIND(ADD)
}

/* Numbers of the sum to stored ones: rounded once, to nearest and ties to even. What is not finite stays so. */

INLINE NAME(words) NAME(nearly)(NAME(reals) values)
{
#if WIDE
    /* To odd: towards zero, with the last bit set where anything was cut off. A second rounding, to fewer bits, then
     * gives what one rounding would. (S. Boldo, G. Melquiond: When double rounding is odd. IMACS 2005.) */
    NAME(floats) nearest = __builtin_convertvector(values, NAME(floats));
    NAME(reals) back = __builtin_convertvector(nearest, NAME(reals));
    NAME(bits) sign = ALL(bits, (BITS)1 << 63);
    NAME(bits) away = (NAME(bits))((NAME(reals))((NAME(bits))back & ~sign) > (NAME(reals))((NAME(bits))values & ~sign));
    NAME(bits) inexact = (NAME(bits))(back != values) & 1;
    return ((NAME(words))nearest - __builtin_convertvector(away & 1, NAME(words))) |
           __builtin_convertvector(inexact, NAME(words));
#else
    return (NAME(words))values;
#endif
}

INLINE void NAME(store_bfloat)(char *stored, NAME(words) near)
{
    /* Add half of what is cut off, one less where the last bit that is kept is even: the carry rounds. */
    NAME(words) nan = (NAME(words))((near & 0x7FFFFFFF) > 0x7F800000);
    NAME(words) rounded = near + 0x7FFF + (near >> 16 & 1);
    rounded = (nan & (near | 0x400000)) | (~nan & rounded);
    NAME(shorts) upper = __builtin_convertvector(rounded >> 16, NAME(shorts));
    memcpy(stored, &upper, sizeof upper);
}

INLINE void NAME(store_half)(char *stored, NAME(words) near)
{
#ifdef HALF_TO_FLOAT
    FLOAT_TO_HALF(stored, near);
#else
    NAME(words) sign = near & 0x80000000, magnitude = near ^ sign;
    NAME(words) normal = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
    /* The last bit of 0.5 is the least float16: the sum with it is rounded there. */
    NAME(words) one_half = ALL(words, 0x3F000000);
    NAME(words) small = (NAME(words))((NAME(floats))magnitude + (NAME(floats))one_half) - one_half;
    NAME(words) is_small = (NAME(words))(magnitude < 0x38800000), is_large = (NAME(words))(magnitude >= 0x47800000);
    NAME(words) large = 0x7C00 | ((NAME(words))(magnitude > 0x7F800000) & 0x200);
    NAME(words) rounded = (is_small & small) | (is_large & large) | (~(is_small | is_large) & normal);
    NAME(shorts) halves = __builtin_convertvector(rounded | sign >> 16, NAME(shorts));
    memcpy(stored, &halves, sizeof halves);
#endif
}

INLINE void NAME(store)(int kind, char *stored, const NAME(reals) *values)
{
#define TO_EACH(store, size) UNROLLED store(stored + v * LANES * (int)(size))
#define BFLOAT(at) NAME(store_bfloat)(at, NAME(nearly)(values[v]))
#define HALF(at) NAME(store_half)(at, NAME(nearly)(values[v]))
#define REALS(at) memcpy(at, &values[v], sizeof values[v])
#if WIDE
#define FLOATS(at)                                                            \
    do {                                                                      \
        NAME(floats) narrow = __builtin_convertvector(values[v], NAME(floats)); \
        memcpy(at, &narrow, sizeof narrow);                                   \
    } while (0)
#else
#define FLOATS(at) REALS(at)
#endif
    switch (kind) {
    case BF16: TO_EACH(BFLOAT, 2); break;
    case F16: TO_EACH(HALF, 2); break;
    case F32: TO_EACH(FLOATS, 4); break;
    default: TO_EACH(REALS, sizeof(REAL)); break;
    }
}

/* Add one tile of all rows to the sum of one average; `tile` points to the tile of each row, and of the sum. */
INLINE void NAME(add_tile)(const Fold *fold, const Average *average, const Tile *tile, NAME(bits) *beyond,
                           const int plain)
{
    NAME(reals) total[VECTORS], newest[VECTORS];
    NAME(load)(tile->newest_kind, tile->newest, newest);
    if (average->begins)
        UNROLLED total[v] = (NAME(reals)){0};
    else
        NAME(load)(SAME, tile->sums, total);
    for (int k = 0; k < fold->rows; k++) {
        if (average->weights[k] == 0.0)
            continue;
        NAME(reals) weight = ALL(reals, (REAL)average->weights[k]);
        NAME(add_row)(tile->kinds[k], tile->rows[k], weight, newest, total, plain);
    }
    if (!fold->ends) {
        NAME(store)(SAME, tile->sums, total);
        return;
    }
    NAME(bits) sign = ALL(bits, (BITS)1 << (8 * sizeof(REAL) - 1));
    NAME(reals) limit = ALL(reals, (REAL)fold->limit);
    UNROLLED
    {
        NAME(reals) sum = plain ? total[v] : newest[v] + total[v];
        /* A zero has the sign of a newest zero: the sum, which began with 0.0, is never -0.0. */
        NAME(bits) zero = (NAME(bits))(sum == 0) & (NAME(bits))(newest[v] == 0);
        sum = (NAME(reals))((NAME(bits))sum | (zero & (NAME(bits))newest[v]));
        *beyond |= ~(NAME(bits))((NAME(reals))((NAME(bits))sum & ~sign) < limit);
        total[v] = sum;
    }
    NAME(store)(fold->target, tile->out, total);
}

/* Add all rows to the sums of all averages; return a bit for each average that is not below the limit everywhere. */
static FOR_CPU uint64_t NAME(fold)(const Fold *fold)
{
    REAL decoded[MOST_ROWS][TILE] __attribute__((aligned(64)));
    double whole[TILE] __attribute__((aligned(64))), newest[TILE] __attribute__((aligned(64)));
    NAME(bits) beyond[MOST_AVERAGES];
    NAME(reals) values[VECTORS];
    memset(beyond, 0, sizeof beyond);
    for (size_t at = 0; at < fold->count; at += TILE) {
        const size_t left = fold->count - at;
        const int is_whole = left >= TILE;
        const size_t numbers = is_whole ? TILE : left;
        Tile tile;
        for (int k = 0; k < fold->rows; k++) {
            tile.kinds[k] = fold->kinds[k];
            tile.rows[k] = fold->row[k] + at * SIZES[tile.kinds[k]];
            if (is_whole && fold->averages == 1)
                continue;
            /* What several averages use is decoded once; the last tile is filled up with zeros. */
            if (!is_whole) {
                memset(whole, 0, sizeof whole);
                memcpy(whole, tile.rows[k], numbers * SIZES[tile.kinds[k]]);
                tile.rows[k] = (const char *)whole;
            }
            NAME(load)(tile.kinds[k], tile.rows[k], values);
            memcpy(decoded[k], values, sizeof values);
            tile.rows[k] = (const char *)decoded[k];
            tile.kinds[k] = SAME;
        }
        for (int a = 0; a < fold->averages; a++) {
            const Average *average = &fold->average[a];
            char *const sums = average->sums + at * sizeof(REAL);
            char *const out = average->out + at * SIZES[fold->target];
            tile.newest_kind = average->newest_kind;
            tile.newest = average->newest + at * SIZES[tile.newest_kind];
            tile.sums = sums;
            tile.out = out;
            /* Sums so far lie in slow memory, in as many places as there are averages: more than a processor sees ahead. */
            if (!average->begins && left >= 2 * TILE)
                for (size_t line = 0; line < TILE * sizeof(REAL); line += 64)
                    __builtin_prefetch(sums + TILE * sizeof(REAL) + line, 1);
            if (!is_whole) {
                memset(newest, 0, sizeof newest);
                memcpy(newest, tile.newest, numbers * SIZES[tile.newest_kind]);
                tile.newest = (const char *)newest;
                memset(whole, 0, sizeof whole);
                if (!average->begins)
                    memcpy(whole, sums, numbers * sizeof(REAL));
                tile.sums = tile.out = (char *)whole;
            }
            if (fold->plain)
                NAME(add_tile)(fold, average, &tile, &beyond[a], 1);
            else
                NAME(add_tile)(fold, average, &tile, &beyond[a], 0);
            if (!is_whole)
                memcpy(fold->ends ? out : sums, whole, numbers * (fold->ends ? SIZES[fold->target] : sizeof(REAL)));
        }
    }
    uint64_t found = 0;
    for (int a = 0; a < fold->averages; a++)
        for (int lane = 0; lane < LANES; lane++)
            if (beyond[a][lane])
                found |= (uint64_t)1 << a;
    return found;
}

#undef UNROLLED
#undef EACH
#undef EACH_OF_KIND
#undef KEEP
#undef ADD
#undef TO_EACH
#undef BFLOAT
#undef HALF
#undef REALS
#undef FLOATS
#undef LANES
#undef VECTORS
#undef TILE
#undef ALL
#undef INLINE
#undef NAME
#undef FOR_CPU
#undef VECTOR
#undef REAL
#undef BITS
#undef WIDE
#undef TO_WORDS
#undef HALF_TO_FLOAT
#undef FLOAT_TO_HALF
