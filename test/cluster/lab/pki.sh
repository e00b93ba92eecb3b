#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the cluster's keys, certificates and kubeconfigs:
#
#     pki.sh NODE-NUMBER...

# shellcheck source=test/cluster/lab/lib.sh
. "$(dirname "$0")/lib.sh"

mkdir -p "$pki"
chmod 700 "$pki"
cd "$pki"

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

authority() {
	key ca.key
	openssl req -x509 -new -key ca.key -subj /CN=orb8-lab -days 365 -out ca.crt \
		-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature
	openssl genrsa -out sa.key 2048
	openssl rsa -in sa.key -pubout -out sa.pub
}

# certificate NAME SUBJECT USAGE [SUBJECT-ALT-NAME]
certificate() {
	key "$1.key"
	openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
	{
		echo "keyUsage=critical,digitalSignature,keyEncipherment"
		echo "extendedKeyUsage=$3"
		[[ -z ${4:-} ]] || echo "subjectAltName=$4"
	} >"$1.ext"
	openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile "$1.ext" -out "$1.crt"
	rm "$1.csr" "$1.ext"
}

# kubeconfig NAME for the certificate of that name
kubeconfig() {
	cat >"$1.kubeconfig" <<-END
		apiVersion: v1
		kind: Config
		current-context: lab
		contexts: [{name: lab, context: {cluster: lab, user: $1}}]
		clusters: [{name: lab, cluster: {server: "https://$control4:6443", certificate-authority: $pki/ca.crt}}]
		users: [{name: $1, user: {client-certificate: $pki/$1.crt, client-key: $pki/$1.key}}]
	END
}

# client NAME SUBJECT: a certificate with its kubeconfig
client() {
	certificate "$1" "$2" clientAuth
	kubeconfig "$1"
}

{
	authority
	names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost
	certificate apiserver /CN=kube-apiserver serverAuth "$names,IP:127.0.0.1,IP:10.97.0.1,IP:$control4,IP:$control6"
	certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
	client admin /O=system:masters/CN=admin
	client controllers /CN=system:kube-controller-manager
	client scheduler /CN=system:kube-scheduler
	client proxy /CN=system:kube-proxy
	for i in "$@"; do
		certificate "n$i" "/O=system:nodes/CN=system:node:n$i" clientAuth,serverAuth "DNS:n$i"
		kubeconfig "n$i"
	done
} 2>"$logs/pki.log" || die "openssl: $(tail -3 "$logs/pki.log")"
