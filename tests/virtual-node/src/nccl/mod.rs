//! A double of NCCL: communicators between ranks of one process, with faults on request.
