# shellcheck shell=bash
# Keys, certificates and kubeconfigs; to be sourced after lib.sh.

sign() { # name, subject, alternative names: a key and a certificate of the cluster's authority
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -out "$1.crt" -days 3650 \
    -extfile <(printf 'subjectAltName=%s\n' "${3:-DNS:$1}")
  rm "$1.csr"
}

# front-proxy: the API server shows it to the API servers behind it (metrics-server). Its name must be no client's.
make_keys() { # alternative names of the API server: into $RUN/keys, unless they are there
  [ -f "$RUN/keys/complete" ] && return
  rm -rf "$RUN/keys"
  mkdir -p "$RUN/keys" "$RUN/log"
  (
    umask 077
    cd "$RUN/keys"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.crt \
      -subj /CN=outlast-cluster -days 3650
    sign apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes.default.svc,$1"
    sign admin /O=system:masters/CN=admin
    sign front-proxy /CN=front-proxy
    openssl ecparam -name prime256v1 -genkey -noout -out accounts.key
  ) >"$RUN/log/keys.log" 2>&1 || fail "making the keys failed; see $RUN/log/keys.log"
  touch "$RUN/keys/complete"
}

write_kubeconfig() { # file, server, name of key and certificate
  (
    umask 077
    cat >"$1.new" <<YAML
apiVersion: v1
kind: Config
clusters:
  - name: outlast
    cluster: {server: "$2", certificate-authority-data: $(base64 -w0 "$RUN/keys/ca.crt")}
users:
  - name: $3
    user: {client-certificate-data: $(base64 -w0 "$RUN/keys/$3.crt"), client-key-data: $(base64 -w0 "$RUN/keys/$3.key")}
contexts:
  - {name: outlast, context: {cluster: outlast, user: $3}}
current-context: outlast
YAML
    mv "$1.new" "$1"
  )
}
