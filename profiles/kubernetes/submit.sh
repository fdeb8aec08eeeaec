# submit.sh THREADS MEMORY GPUS SCRIPT: run a script in a pod of its own; prints the name of its job.
# MEMORY is in MB; IMAGE, CLAIM and MOUNT are explained in config.yaml.
kubectl create --output name --filename - <<END
apiVersion: batch/v1
kind: Job
metadata:
  generateName: blockspectra-
  labels: {app: blockspectra}
spec:
  backoffLimit: 0
  ttlSecondsAfterFinished: 86400
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: job
        image: "${IMAGE:?Name the image to run in.}"
        command: [sh, "$4"]
        workingDir: "$PWD"
        resources:
          requests: {cpu: "$1", memory: ${2}M}
          limits: {memory: ${2}M, nvidia.com/gpu: "$3"}
        volumeMounts: [{name: shared, mountPath: "${MOUNT:?Say where the volume is mounted.}"}]
      volumes:
      - name: shared
        persistentVolumeClaim: {claimName: "${CLAIM:?Name the PersistentVolumeClaim.}"}
END
