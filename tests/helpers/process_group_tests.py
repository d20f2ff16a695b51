"""Functions in several processes that know of each other as torchrun tells them. A module, as pickles name it."""

import contextlib
import io
import multiprocessing
import os
import socket
import traceback

import torch

CONTEXT = multiprocessing.get_context("forkserver")  # imports once what takes longest
CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "torch.distributed.checkpoint",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "dmdistill.commands.distill.command",
    ]
)


def together(count, function, *arguments, rank_arguments=None):
    """What function(*arguments) answers with, and prints, in each of so many processes: [(answer, printed) ...].

    rank_arguments: further ones of each process. RuntimeError, with its traceback, where one fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, started = [], []
    for rank in range(count):
        told = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        mine, theirs = CONTEXT.Pipe(duplex=False)
        more = rank_arguments[rank] if rank_arguments else ()
        process = CONTEXT.Process(target=work, args=(theirs, told, function, (*arguments, *more)))
        process.start()
        theirs.close()
        pipes.append(mine)
        started.append(process)
    answers = [receive(pipe) for pipe in pipes]
    for process in started:
        process.join(60)
    for failed, answer, _ in answers:
        if failed:
            raise RuntimeError(answer)
    return [(answer, printed) for _, answer, printed in answers]


def receive(pipe):
    try:
        return pipe.recv() if pipe.poll(120) else (True, "no answer", "")
    except EOFError:
        return True, "the process died", ""


def work(pipe, told, function, arguments):
    os.environ.update({name: str(value) for name, value in told.items()})
    torch.set_num_threads(1)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            answer = False, function(*arguments)
    except BaseException:
        answer = True, traceback.format_exc()
    pipe.send((*answer, printed.getvalue()))
