/* Pieces of work on a few threads. See threads.c. */
#pragma once

/* What does piece number `piece`; `what` is the same for all pieces of one run. */
typedef void (*Work)(const void *what, long piece);

/* Does pieces 0..pieces-1 on at most `threads` threads, the caller among them; returns when all are done. */
void run_pieces(Work work, const void *what, long pieces, int threads);
