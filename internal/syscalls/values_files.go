// SPDX-License-Identifier: Apache-2.0

package syscalls

// accessBits are bits of access's mode.
var accessBits = []bit{
	{0x4, "R_OK"}, {0x2, "W_OK"}, {0x1, "X_OK"},
}

// openModes say what a file is opened for, by the lowest bits of its flags.
var openModes = map[uint64]string{
	0: "O_RDONLY", 1: "O_WRONLY", 2: "O_RDWR", 3: "O_ACCMODE",
}

// atBits are flags of the calls whose names end in at.
var atBits = []bit{
	{0x100, "AT_SYMLINK_NOFOLLOW"}, {0x400, "AT_SYMLINK_FOLLOW"}, {0x800, "AT_NO_AUTOMOUNT"},
	{0x1000, "AT_EMPTY_PATH"}, {0x2000, "AT_STATX_FORCE_SYNC"}, {0x4000, "AT_STATX_DONT_SYNC"},
	{0x8000, "AT_RECURSIVE"},
}

var unlinkBits = []bit{
	{0x200, "AT_REMOVEDIR"},
}

var accessAtBits = []bit{
	{0x200, "AT_EACCESS"}, {0x100, "AT_SYMLINK_NOFOLLOW"}, {0x1000, "AT_EMPTY_PATH"},
}

// handleBits are flags of name_to_handle_at.
var handleBits = []bit{
	{0x200, "AT_HANDLE_FID"}, {0x1, "AT_HANDLE_MNT_ID_UNIQUE"}, {0x2, "AT_HANDLE_CONNECTABLE"},
	{0x400, "AT_SYMLINK_FOLLOW"}, {0x1000, "AT_EMPTY_PATH"},
}

// statxBits are what statx is asked for.
var statxBits = []bit{
	{0xfff, "STATX_ALL"}, {0x7ff, "STATX_BASIC_STATS"}, {0x1, "STATX_TYPE"}, {0x2, "STATX_MODE"},
	{0x4, "STATX_NLINK"}, {0x8, "STATX_UID"}, {0x10, "STATX_GID"}, {0x20, "STATX_ATIME"},
	{0x40, "STATX_MTIME"}, {0x80, "STATX_CTIME"}, {0x100, "STATX_INO"}, {0x200, "STATX_SIZE"},
	{0x400, "STATX_BLOCKS"}, {0x800, "STATX_BTIME"}, {0x1000, "STATX_MNT_ID"},
	{0x2000, "STATX_DIOALIGN"}, {0x4000, "STATX_MNT_ID_UNIQUE"}, {0x8000, "STATX_SUBVOL"},
	{0x10000, "STATX_WRITE_ATOMIC"}, {0x20000, "STATX_DIO_READ_ALIGN"},
}

var renameBits = []bit{
	{0x1, "RENAME_NOREPLACE"}, {0x2, "RENAME_EXCHANGE"}, {0x4, "RENAME_WHITEOUT"},
}

var whences = map[uint64]string{
	0: "SEEK_SET", 1: "SEEK_CUR", 2: "SEEK_END", 3: "SEEK_DATA", 4: "SEEK_HOLE",
}

// openBits are flags of open that are the same on all architectures.
var openBits = []bit{
	{0x101000, "O_SYNC"}, {0x40, "O_CREAT"}, {0x80, "O_EXCL"}, {0x100, "O_NOCTTY"},
	{0x200, "O_TRUNC"}, {0x400, "O_APPEND"}, {0x800, "O_NONBLOCK"}, {0x1000, "O_DSYNC"},
	{0x2000, "O_ASYNC"}, {0x40000, "O_NOATIME"}, {0x80000, "O_CLOEXEC"}, {0x200000, "O_PATH"},
}

// openX86Bits are the flags of open that have other numbers on x86 than on Arm.
var openX86Bits = []bit{
	{0x410000, "O_TMPFILE"}, {0x10000, "O_DIRECTORY"}, {0x20000, "O_NOFOLLOW"},
	{0x4000, "O_DIRECT"}, {0x8000, "O_LARGEFILE"},
}

var openArmBits = []bit{
	{0x404000, "O_TMPFILE"}, {0x4000, "O_DIRECTORY"}, {0x8000, "O_NOFOLLOW"}, {0x10000, "O_DIRECT"},
	{0x20000, "O_LARGEFILE"},
}

// fileTypes are types of files, by the highest bits of their modes.
var fileTypes = map[uint64]string{
	0x1000: "S_IFIFO", 0x2000: "S_IFCHR", 0x4000: "S_IFDIR", 0x6000: "S_IFBLK", 0x8000: "S_IFREG",
	0xa000: "S_IFLNK", 0xc000: "S_IFSOCK",
}

// fcntls are commands of fcntl; those with 64 are of 32-bit programs.
var fcntls = map[uint64]string{
	0: "F_DUPFD", 1: "F_GETFD", 2: "F_SETFD", 3: "F_GETFL", 4: "F_SETFL", 5: "F_GETLK",
	6: "F_SETLK", 7: "F_SETLKW", 8: "F_SETOWN", 9: "F_GETOWN", 10: "F_SETSIG", 11: "F_GETSIG",
	12: "F_GETLK64", 13: "F_SETLK64", 14: "F_SETLKW64", 15: "F_SETOWN_EX", 16: "F_GETOWN_EX",
	17: "F_GETOWNER_UIDS", 36: "F_OFD_GETLK", 37: "F_OFD_SETLK", 38: "F_OFD_SETLKW",
	1024: "F_SETLEASE", 1025: "F_GETLEASE", 1026: "F_NOTIFY", 1027: "F_DUPFD_QUERY",
	1028: "F_CREATED_QUERY", 1029: "F_CANCELLK", 1030: "F_DUPFD_CLOEXEC", 1031: "F_SETPIPE_SZ",
	1032: "F_GETPIPE_SZ", 1033: "F_ADD_SEALS", 1034: "F_GET_SEALS", 1035: "F_GET_RW_HINT",
	1036: "F_SET_RW_HINT", 1037: "F_GET_FILE_RW_HINT", 1038: "F_SET_FILE_RW_HINT",
}

var fdBits = []bit{
	{0x1, "FD_CLOEXEC"},
}

var sealBits = []bit{
	{0x1, "F_SEAL_SEAL"}, {0x2, "F_SEAL_SHRINK"}, {0x4, "F_SEAL_GROW"}, {0x8, "F_SEAL_WRITE"},
	{0x10, "F_SEAL_FUTURE_WRITE"}, {0x20, "F_SEAL_EXEC"},
}

// locks are operations of flock, without LOCK_NB.
var locks = map[uint64]string{
	1: "LOCK_SH", 2: "LOCK_EX", 8: "LOCK_UN",
}

var lockBits = []bit{
	{0x4, "LOCK_NB"},
}

// ioctls are commands of ioctl that are the same on all architectures: of terminals,
// network devices, TUN, loop devices, perf, namespaces and KVM.
var ioctls = map[uint64]string{
	0x2400: "PERF_EVENT_IOC_ENABLE", 0x2401: "PERF_EVENT_IOC_DISABLE",
	0x2403: "PERF_EVENT_IOC_RESET", 0x4c00: "LOOP_SET_FD", 0x4c01: "LOOP_CLR_FD",
	0x4c0a: "LOOP_CONFIGURE", 0x4c82: "LOOP_CTL_GET_FREE", 0x5401: "TCGETS", 0x5402: "TCSETS",
	0x5403: "TCSETSW", 0x5404: "TCSETSF", 0x540e: "TIOCSCTTY", 0x540f: "TIOCGPGRP",
	0x5410: "TIOCSPGRP", 0x5411: "TIOCOUTQ", 0x5412: "TIOCSTI", 0x5413: "TIOCGWINSZ",
	0x5414: "TIOCSWINSZ", 0x541b: "FIONREAD", 0x541c: "TIOCLINUX", 0x5421: "FIONBIO",
	0x5422: "TIOCNOTTY", 0x5429: "TIOCGSID", 0x5441: "TIOCGPTPEER", 0x5450: "FIONCLEX",
	0x5451: "FIOCLEX", 0x5452: "FIOASYNC", 0x890b: "SIOCADDRT", 0x890c: "SIOCDELRT",
	0x8910: "SIOCGIFNAME", 0x8912: "SIOCGIFCONF", 0x8913: "SIOCGIFFLAGS", 0x8914: "SIOCSIFFLAGS",
	0x8915: "SIOCGIFADDR", 0x8916: "SIOCSIFADDR", 0x891b: "SIOCGIFNETMASK",
	0x891c: "SIOCSIFNETMASK", 0x8921: "SIOCGIFMTU", 0x8922: "SIOCSIFMTU", 0x8924: "SIOCSIFHWADDR",
	0x8927: "SIOCGIFHWADDR", 0x8933: "SIOCGIFINDEX", 0x8946: "SIOCETHTOOL", 0x89a0: "SIOCBRADDBR",
	0x89a2: "SIOCBRADDIF", 0xae01: "KVM_CREATE_VM", 0xb701: "NS_GET_USERNS",
	0xb702: "NS_GET_PARENT", 0xb703: "NS_GET_NSTYPE", 0x40042408: "PERF_EVENT_IOC_SET_BPF",
	0x40045431: "TIOCSPTLCK", 0x400454ca: "TUNSETIFF", 0x400454cb: "TUNSETPERSIST",
	0x400454cc: "TUNSETOWNER", 0x40049409: "FICLONE", 0x40086602: "FS_IOC_SETFLAGS",
	0x80045430: "TIOCGPTN", 0x800454d2: "TUNGETIFF", 0x80086601: "FS_IOC_GETFLAGS",
	0xc0045877: "FIFREEZE", 0xc0045878: "FITHAW",
}

// inotifyBits are what inotify watches for.
var inotifyBits = []bit{
	{0xfff, "IN_ALL_EVENTS"}, {0x18, "IN_CLOSE"}, {0xc0, "IN_MOVE"}, {0x1, "IN_ACCESS"},
	{0x2, "IN_MODIFY"}, {0x4, "IN_ATTRIB"}, {0x8, "IN_CLOSE_WRITE"}, {0x10, "IN_CLOSE_NOWRITE"},
	{0x20, "IN_OPEN"}, {0x40, "IN_MOVED_FROM"}, {0x80, "IN_MOVED_TO"}, {0x100, "IN_CREATE"},
	{0x200, "IN_DELETE"}, {0x400, "IN_DELETE_SELF"}, {0x800, "IN_MOVE_SELF"},
	{0x1000000, "IN_ONLYDIR"}, {0x2000000, "IN_DONT_FOLLOW"}, {0x4000000, "IN_EXCL_UNLINK"},
	{0x10000000, "IN_MASK_CREATE"}, {0x20000000, "IN_MASK_ADD"}, {0x40000000, "IN_ISDIR"},
	{0x80000000, "IN_ONESHOT"},
}

var inotifyInitBits = []bit{
	{0x80000, "IN_CLOEXEC"}, {0x800, "IN_NONBLOCK"},
}

// fanotifyClasses are classes of fanotify_init.
var fanotifyClasses = map[uint64]string{
	0: "FAN_CLASS_NOTIF", 4: "FAN_CLASS_CONTENT", 8: "FAN_CLASS_PRE_CONTENT",
}

var fanotifyBits = []bit{
	{0x1, "FAN_CLOEXEC"}, {0x2, "FAN_NONBLOCK"}, {0x10, "FAN_UNLIMITED_QUEUE"},
	{0x20, "FAN_UNLIMITED_MARKS"}, {0x40, "FAN_ENABLE_AUDIT"}, {0x80, "FAN_REPORT_PIDFD"},
	{0x100, "FAN_REPORT_TID"}, {0x200, "FAN_REPORT_FID"}, {0x400, "FAN_REPORT_DIR_FID"},
	{0x800, "FAN_REPORT_NAME"}, {0x1000, "FAN_REPORT_TARGET_FID"}, {0x2000, "FAN_REPORT_FD_ERROR"},
	{0x4000, "FAN_REPORT_MNT"},
}

var fanotifyMarkBits = []bit{
	{0x1, "FAN_MARK_ADD"}, {0x2, "FAN_MARK_REMOVE"}, {0x4, "FAN_MARK_DONT_FOLLOW"},
	{0x8, "FAN_MARK_ONLYDIR"}, {0x10, "FAN_MARK_MOUNT"}, {0x20, "FAN_MARK_IGNORED_MASK"},
	{0x40, "FAN_MARK_IGNORED_SURV_MODIFY"}, {0x80, "FAN_MARK_FLUSH"},
	{0x100, "FAN_MARK_FILESYSTEM"}, {0x200, "FAN_MARK_EVICTABLE"}, {0x400, "FAN_MARK_IGNORE"},
}

var fanotifyEvents = []bit{
	{0x18, "FAN_CLOSE"}, {0xc0, "FAN_MOVE"}, {0x1, "FAN_ACCESS"}, {0x2, "FAN_MODIFY"},
	{0x4, "FAN_ATTRIB"}, {0x8, "FAN_CLOSE_WRITE"}, {0x10, "FAN_CLOSE_NOWRITE"}, {0x20, "FAN_OPEN"},
	{0x40, "FAN_MOVED_FROM"}, {0x80, "FAN_MOVED_TO"}, {0x100, "FAN_CREATE"}, {0x200, "FAN_DELETE"},
	{0x400, "FAN_DELETE_SELF"}, {0x800, "FAN_MOVE_SELF"}, {0x1000, "FAN_OPEN_EXEC"},
	{0x4000, "FAN_Q_OVERFLOW"}, {0x8000, "FAN_FS_ERROR"}, {0x10000, "FAN_OPEN_PERM"},
	{0x20000, "FAN_ACCESS_PERM"}, {0x40000, "FAN_OPEN_EXEC_PERM"},
	{0x8000000, "FAN_EVENT_ON_CHILD"}, {0x10000000, "FAN_RENAME"}, {0x40000000, "FAN_ONDIR"},
}

var xattrBits = []bit{
	{0x1, "XATTR_CREATE"}, {0x2, "XATTR_REPLACE"},
}

var fallocateBits = []bit{
	{0x1, "FALLOC_FL_KEEP_SIZE"}, {0x2, "FALLOC_FL_PUNCH_HOLE"}, {0x4, "FALLOC_FL_NO_HIDE_STALE"},
	{0x8, "FALLOC_FL_COLLAPSE_RANGE"}, {0x10, "FALLOC_FL_ZERO_RANGE"},
	{0x20, "FALLOC_FL_INSERT_RANGE"}, {0x40, "FALLOC_FL_UNSHARE_RANGE"},
}

var fadvices = map[uint64]string{
	0: "POSIX_FADV_NORMAL", 1: "POSIX_FADV_RANDOM", 2: "POSIX_FADV_SEQUENTIAL",
	3: "POSIX_FADV_WILLNEED", 4: "POSIX_FADV_DONTNEED", 5: "POSIX_FADV_NOREUSE",
}

var spliceBits = []bit{
	{0x1, "SPLICE_F_MOVE"}, {0x2, "SPLICE_F_NONBLOCK"}, {0x4, "SPLICE_F_MORE"},
	{0x8, "SPLICE_F_GIFT"},
}

// rwfBits are flags of preadv2 and pwritev2.
var rwfBits = []bit{
	{0x1, "RWF_HIPRI"}, {0x2, "RWF_DSYNC"}, {0x4, "RWF_SYNC"}, {0x8, "RWF_NOWAIT"},
	{0x10, "RWF_APPEND"}, {0x20, "RWF_NOAPPEND"}, {0x40, "RWF_ATOMIC"}, {0x80, "RWF_DONTCACHE"},
}

var syncRangeBits = []bit{
	{0x1, "SYNC_FILE_RANGE_WAIT_BEFORE"}, {0x2, "SYNC_FILE_RANGE_WRITE"},
	{0x4, "SYNC_FILE_RANGE_WAIT_AFTER"},
}

var closeRangeBits = []bit{
	{0x2, "CLOSE_RANGE_UNSHARE"}, {0x4, "CLOSE_RANGE_CLOEXEC"},
}

var epollCreateBits = []bit{
	{0x80000, "EPOLL_CLOEXEC"},
}

var epollOps = map[uint64]string{
	1: "EPOLL_CTL_ADD", 2: "EPOLL_CTL_DEL", 3: "EPOLL_CTL_MOD",
}

var eventfdBits = []bit{
	{0x1, "EFD_SEMAPHORE"}, {0x800, "EFD_NONBLOCK"}, {0x80000, "EFD_CLOEXEC"},
}

var signalfdBits = []bit{
	{0x800, "SFD_NONBLOCK"}, {0x80000, "SFD_CLOEXEC"},
}

var timerfdBits = []bit{
	{0x800, "TFD_NONBLOCK"}, {0x80000, "TFD_CLOEXEC"},
}

var timerBits = []bit{
	{0x1, "TIMER_ABSTIME"}, {0x2, "TFD_TIMER_CANCEL_ON_SET"},
}

// resolveBits say how openat2 walks a path.
var resolveBits = []bit{
	{0x1, "RESOLVE_NO_XDEV"}, {0x2, "RESOLVE_NO_MAGICLINKS"}, {0x4, "RESOLVE_NO_SYMLINKS"},
	{0x8, "RESOLVE_BENEATH"}, {0x10, "RESOLVE_IN_ROOT"}, {0x20, "RESOLVE_CACHED"},
}
