# Where the first word is -h or --help: print what stands on top of the script that sources this.
case ${1:-} in -h | --help)
    sed -n '2,/^[^#]/s/^# //p' "$0"
    exit
    ;;
esac
