// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/Ignoramuss/orb8/tools/testgate/verdict"
)

// unfinished is why a test without a result failed.
const unfinished = "did not finish"

// retries are the tests that failed and may be run once more.
func (k *kernel) retries() []*test {
	var all []*test
	for _, t := range k.tests {
		if t.status == fail && k.mayPass(t) {
			all = append(all, t)
		}
	}
	return all
}

// mayPass tells whether a failure of a test, not of a part of one, may be an accident.
func (k *kernel) mayPass(t *test) bool {
	if strings.Contains(t.name, "/") || strings.HasPrefix(t.name, "(") || t.detail == unfinished {
		return false
	}
	var said strings.Builder
	for _, p := range k.parts(t) {
		said.WriteString(strings.Join(p.output, "\n") + "\n")
	}
	return verdict.Final(t.name, said.String()) == ""
}

// parts are a test and the parts of it.
func (k *kernel) parts(t *test) []*test {
	var all []*test
	for _, p := range k.tests {
		if p.pkg == t.pkg && (p.name == t.name || strings.HasPrefix(p.name, t.name+"/")) {
			all = append(all, p)
		}
	}
	return all
}

// lookAgain takes what tests said that were run once more, each alone: one that
// passed is flaky and counts as passed.
func (k *kernel) lookAgain(out string) {
	second := &kernel{}
	second.parse(out)
	for _, t := range k.retries() {
		again := second.find(t.pkg, t.name)
		if again == nil || again.status != pass || !second.ended[t.pkg] {
			continue
		}
		first := *t
		first.output = nil
		for _, p := range k.parts(t) {
			if p.status == fail {
				first.output = append(first.output, p.output...)
			}
		}
		k.flaky = append(k.flaky, &first)
		for _, p := range k.parts(t) {
			if p.status == fail {
				p.status, p.detail = pass, ""
			}
		}
	}
}

func (k *kernel) find(pkg, name string) *test {
	for _, t := range k.tests {
		if t.pkg == pkg && t.name == name {
			return t
		}
	}
	return nil
}

// said is what a test said in one line.
func (t *test) said() string { return verdict.Said(strings.Join(t.output, "\n")) }
