// SPDX-License-Identifier: Apache-2.0
/*
 * load SECONDS PROGRAM: starts a program over and over, one after the other, for some
 * seconds, and says how often.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char *args[] = {argv[2], "load", NULL}, *none[] = {NULL};
	time_t end = time(NULL) + atoi(argv[1]) + 1;
	long n = 0;

	for (; time(NULL) < end; n++) {
		pid_t pid = vfork();

		if (pid == 0) {
			execve(args[0], args, none);
			_exit(127);
		}
		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			return 1;
	}
	printf("%ld\n", n);
	return 0;
}
