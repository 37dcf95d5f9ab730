"""Makes the report of a search again from the files in its work_dir."""

from mmmpq.cli.flags.report import parse_args
from mmmpq.fileio import strict_json
from mmmpq.visualization.report import check_rows, write_report
from mmmpq.visualization.sizes import check_sizes


def read_json(path, flag):
    if not path.is_file():
        raise FileNotFoundError(
            f'{flag}: {path} does not exist; see --help for what it holds'
        )
    try:
        return strict_json(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{flag}: {path} is not JSON ({error})') from error


def main():
    args = parse_args()
    rows = read_json(args.rows, '--rows') if args.rows else None
    sizes = read_json(args.sizes, '--sizes') if args.sizes else None
    if rows is not None:
        check_rows(rows, f'--rows: {args.rows}: rows')
    if sizes is not None:
        check_sizes(sizes, f'--sizes: {args.sizes}')
    print(write_report(args.work_dir, rows, args.out_dir, sizes))
