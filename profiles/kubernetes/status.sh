# status.sh JOB: say success, failed or running, as Snakemake asks for it. A job that has been deleted
# has failed; one that cannot be asked about just now is taken to be running.
counts=$(kubectl get "$1" --ignore-not-found --output 'jsonpath={.status.succeeded},{.status.failed}') \
    || counts=,
case $counts in
    1,*) echo success ;;
    ,) echo running ;;
    *) echo failed ;;
esac
