// SPDX-License-Identifier: Apache-2.0
/* Makes calls of many kinds, for a comparison of who counts them how. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void on_signal(int sig) { (void)sig; }

static void *thread(void *arg)
{
	for (int i = 0; i < 30; i++)
		close(1000 + i);
	return arg;
}

static void child(int out)
{
	char *const argv[] = { "nothing", 0 };

	for (int i = 0; i < 20; i++)
		getppid();
	write(out, "x", 1);
	execv("/nowhere/at/all", argv);
	_exit(3);
}

int main(void)
{
	char buf[64], name[] = "/tmp/orb8-calls-XXXXXX";
	struct timespec ts = { .tv_nsec = 2000000 };
	pthread_t threads[8];
	int ends[2], pair[2], fd, status;
	struct stat st;

	signal(SIGUSR1, on_signal);
	for (int i = 0; i < 10; i++)
		kill(getpid(), SIGUSR1);
	fd = mkstemp(name);
	for (int i = 0; i < 100; i++)
		write(fd, buf, sizeof(buf));
	lseek(fd, 0, SEEK_SET);
	while (read(fd, buf, sizeof(buf)) > 0)
		;
	fstat(fd, &st);
	unlink(name);
	close(fd);
	for (int i = 0; i < 7; i++)
		open("/nowhere/at/all", O_RDONLY);
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	send(pair[0], "hello", 5, 0);
	recv(pair[1], buf, sizeof(buf), 0);
	mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	nanosleep(&ts, 0);
	for (int i = 0; i < 3; i++) {
		pipe(ends);
		if (!fork())
			child(ends[1]);
		close(ends[1]);
		while (read(ends[0], buf, sizeof(buf)) > 0)
			;
		close(ends[0]);
		wait(&status);
	}
	for (int i = 0; i < 8; i++)
		pthread_create(&threads[i], 0, thread, 0);
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], 0);
	if (!vfork()) {
		execl("/bin/true", "true", (char *)0);
		_exit(127);
	}
	wait(&status);
	return 0;
}
