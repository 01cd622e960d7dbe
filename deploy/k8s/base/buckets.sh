# Makes the buckets and the accounts of those who use them. What is there stays; it can be run again.
set -eu
here=${0%/*}
until mc --quiet alias set store "$STORE" "$ROOT_USER" "$ROOT_PASSWORD"; do
  sleep 2
done
for bucket in vlmir mlflow models; do
  mc mb --ignore-existing "store/$bucket"
done
# What somebody deletes of the registry can be had back.
mc version enable store/mlflow

# account NAME KEY SECRET BUCKET: NAME.json says what it may do.
account() {
  mc admin policy create store "vlmir-$1" "$here/$1.json"
  mc admin user add store "$2" "$3"
  # MinIO calls it an error where it is so already; whether it is shows when the account looks into its bucket.
  mc admin policy attach store "vlmir-$1" --user "$2" || true
  mc --quiet alias set "$1" "$STORE" "$2" "$3"
  mc ls "$1/$4" > /dev/null
}
account services "$SERVICES_KEY" "$SERVICES_SECRET" vlmir
account mlflow "$MLFLOW_KEY" "$MLFLOW_SECRET" mlflow
account writer "$WRITER_KEY" "$WRITER_SECRET" models
account reader "$READER_KEY" "$READER_SECRET" models
echo "buckets and accounts are there"
