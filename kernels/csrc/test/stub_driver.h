/* What the stand-in driver remembers; the test reads it through the exported symbol `stub`. */

#ifndef STUB_DRIVER_H
#define STUB_DRIVER_H

#include <stddef.h>
#include <stdint.h>

enum { STUB_PARAMETERS = 32, STUB_KEPT = 64 };

typedef struct stub_launch {
    const void *image;
    unsigned grid[3], block[3], shared;
    void *stream;
    int no_extra, count; /* parameters, the two hidden ones included */
    uint64_t parameters[STUB_PARAMETERS]; /* eight bytes from where each pointer points */
} stub_launch;

typedef struct stub_record {
    int calls, retained, released, pushed, popped, loaded, unloaded, launched, allocated, freed, opted_in;
    uint64_t filled_at; /* the last cuMemsetD8Async, which is not carried out */
    size_t filled_bytes;
    int filled_with;
    void *last_image;
    char last_entry[128];
    stub_launch launches[STUB_KEPT]; /* ring */
} stub_record;

#endif
