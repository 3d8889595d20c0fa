# S3: Adobe's S3Mock with one bucket, `warehouse`. Tests and drills of object storage ask for it by name.

s3_url() { printf 'http://127.0.0.1:%s' "$(port_of s3)"; }

s3_start() {
  local dir
  dir=$(folder s3)
  [[ -f $S3_JAR ]] || die "s3: $S3_JAR is missing; run: dev/install s3"
  claim_port s3
  mkdir -p "$dir/data" "$dir/tmp"
  # Port 0 is for TLS, which nobody asks for here.
  launch s3 "$(java_bin)" -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData "-Djava.io.tmpdir=$dir/tmp" \
    -jar "$S3_JAR" "--http.port=$(port_of s3)" --server.port=0 --server.address=127.0.0.1 \
    "--com.adobe.testing.s3mock.store.root=$dir/data" --com.adobe.testing.s3mock.store.retain-files-on-exit=true \
    --com.adobe.testing.s3mock.store.initial-buckets=warehouse
}

s3_ready() { curl -fsS -m 5 -o "$(folder s3)/log/ready.xml" "$(s3_url)/warehouse?list-type=2"; }

s3_stop() { halt s3 TERM 20; }

s3_wipe() { rm -rf "$(folder s3)"; }

s3_env() {
  echo "export S3_ENDPOINT=$(s3_url)"
  echo "export S3_REGION=us-east-1"
  echo "export S3_ACCESS_KEY_ID=tidemill"
  echo "export S3_SECRET_ACCESS_KEY=tidemill"
}
