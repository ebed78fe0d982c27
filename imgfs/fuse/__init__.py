"""FUSE: requests of the kernel come out of /dev/fuse, and are answered from a view of a mount's files.

imgfs reads and writes /dev/fuse itself, because pyfuse3, by which libfuse mounts where it has to, lacks

- the inode in `read` and `readdir`: both are given a handle alone, so that every file and directory that is
  open would need state, and OPEN and OPENDIR could not be answered with ENOSYS (FUSE_NO_OPEN_SUPPORT,
  FUSE_NO_OPENDIR_SUPPORT);
- FileInfo as the answer of `opendir`: without FOPEN_CACHE_DIR the kernel keeps no listing;
- access to the connection in `init`: without it no flags, no max_background, no max_pages.

opcodes        opcodes, flags and limits (linux/fuse.h)
protocol       bodies of requests parsed, bodies of answers packed
agreement      what a session and the kernel agree on: features, limits
session        /dev/fuse: reads requests, has them answered, writes the answers
busy_poll      waits for the next request, awake as long as that pays
tasks          requests that wait, by trio: work in threads that is abandoned or undone
interrupts     FUSE_INTERRUPT: which callers get EINTR
callers        who asks: what is told of a mount is not for containers
errors         the one place where an exception becomes an errno
views          the View of an image's tree              union_view     that of its union with a scratch
disk_reads     reads of a quick disk, without a thread
files_ahead    readers of whole trees: the next small files are in the page cache before they are asked for
operations     what is answered from a view; a directory listed in several replies
writable       changes of files
namespace      changes of directories and extended attributes
once           a change of names that a killed process has begun is made once
ranges         parts of files: allocated, searched for data and holes, copied
privileges     set-id bits and capabilities, which go when a file changes
copyup_data    the data of files copied up while their callers wait
erofs_devices  the view of flat layers, which EROFS stands on
"""
