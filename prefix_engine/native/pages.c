/* Erases pages of keys and values. */
#include "threads.h"

#include <stdint.h>
#include <string.h>

typedef struct {
    const int64_t *memories, *pages; /* addresses; numbers */
    long heads, head_bytes, page_bytes, count;
} Erasure;

static void erase_head(const void *what, long piece)
{
    const Erasure *of = what;
    char *head = (char *)of->memories[piece / of->heads] + piece % of->heads * of->head_bytes;
    for (long i = 0; i < of->count; i++) memset(head + of->pages[i] * of->page_bytes, 0, of->page_bytes);
}

/* `count` pages of each of `number` memories, of which one head has head_bytes and a page of it page_bytes. */
void erase_pages(const int64_t *memories, long number, long heads, long head_bytes, const int64_t *pages, long count,
                 long page_bytes, int threads)
{
    Erasure of = {memories, pages, heads, head_bytes, page_bytes, count};
    run_pieces(erase_head, &of, number * heads, threads);
}
